"""The shapes in the annotations are checked while tests run; without that they would be mere decoration."""

from __future__ import annotations

import pytest
import torch

from decodery.sampling import Law, LawSettings
from decodery.sampling.top import top_ids
from decodery.speculative.verifiers.rejection import residual


def test_wrong_shapes_and_types_are_caught() -> None:
    for call in (
        lambda: top_ids(torch.zeros(5), 1),
        lambda: top_ids(torch.zeros(2, 5, dtype=torch.long), 1),
        lambda: Law(LawSettings(temperature=0.5), [1]).scores(torch.zeros(2, 5)),
        lambda: residual(torch.zeros(5), torch.zeros(4)),
    ):
        with pytest.raises(Exception, match="Type-check error"):
            call()
