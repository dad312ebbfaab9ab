"""Decoding of masked-diffusion models: canvases, unmasking rules, block schedules, caches.

A rule (`unmasking/`) says which masked positions get which tokens, given their laws (`laws.py`); a block schedule (`blocks.py`)
where the next block ends; a cache regime (`caches.py`) which rows a forward computes. `state.py` is the state machine that they
make, `loop.py` drives it. Methods are one file or folder each, named as in the registry.
"""
