"""Approximate joint sampling: a trained layer draws the tokens of a step one after the other."""
