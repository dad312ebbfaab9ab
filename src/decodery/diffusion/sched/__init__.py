"""Decoding that ends early once the answer is settled: `sched`."""
