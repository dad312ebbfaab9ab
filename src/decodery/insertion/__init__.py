"""Decoding of models that insert tokens anywhere into a text that grows."""
