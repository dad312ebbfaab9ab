"""FreeCache: keys and values that are frozen once they are clean. `cache.py` says which rows, `method.py` decodes with it."""
