"""Superposed decoding: several drafts from one row per step. `method.py` is the method, `ngrams.py` what it counts."""
