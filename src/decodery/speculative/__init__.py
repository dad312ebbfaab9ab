"""Speculative decoding: drafters propose, verifiers decide, one loop commits."""
