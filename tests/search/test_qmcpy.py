"""Estimates from low-discrepancy samples: which texts they are, when it stops, and what it tells."""

from __future__ import annotations

from decodery.testing import MethodLaws


class TestLowDiscrepancyEstimate(MethodLaws):
    methods = ("qmcpy(samples=8, replications=2)",)
