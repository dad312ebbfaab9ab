"""Soft thinking: mixtures of tokens are fed in place of tokens while the model thinks. `weights.py` makes the mixtures,
`method.py` decodes with them, `probes.py` looks at what the network makes of them."""
