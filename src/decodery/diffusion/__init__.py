"""Decoding of masked-diffusion models: canvases, unmasking rules, block schedules, caches.

A rule (`unmasking/`) says which masked positions get which tokens, given their laws. A block schedule (`blocks/`) says where
the next block ends. A cache regime (`caches/`) says which rows a forward computes. `loop.py` puts them together.
"""
