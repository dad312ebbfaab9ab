"""Experiments: one file each, run by `python -m experiments run <slug>`. See `decodery.evaluation.experiment`."""
