"""AriEL through the engine: points to texts and back, paths between texts, and what is refused."""

from __future__ import annotations

import pytest

from decodery.errors import Refused
from decodery.testing import MethodLaws


class TestAriel(MethodLaws):
    """All laws but enumeration: a point is made of numbers, and has no branches."""

    methods = ("ariel", "ariel(dimensions=2)", "ariel(dimensions=64, precision=float)")

    def test_sampled_law_is_that_of_plain_decoding_exactly(self) -> None:
        for method in self.methods:
            with pytest.raises(Refused, match="draws points as numbers"):
                super().assert_exact(*self.tabular_host(3), method, self.exact_settings[0])
