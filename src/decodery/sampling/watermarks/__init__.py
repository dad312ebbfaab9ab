"""Watermarks: keys, and the numbers that follow from them, for who writes and for who looks for the mark."""
