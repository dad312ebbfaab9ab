"""Likely next tokens without a network, shared by several methods."""
