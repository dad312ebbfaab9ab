"""The shapes in the annotations are checked while tests run; without that they would be mere decoration."""

from __future__ import annotations

import pytest
import torch

from decodery.sampling import Law, LawSettings, Noise, Stage
from decodery.sampling.top import top_ids


def test_wrong_shapes_and_types_are_caught() -> None:
    for call in (
        lambda: top_ids(torch.zeros(5), 1),
        lambda: top_ids(torch.zeros(2, 5, dtype=torch.long), 1),
        lambda: Law(LawSettings(temperature=0.5), [1]).scores(torch.zeros(2, 5)),
        lambda: Noise(0).choose(torch.zeros(2, 5), 0, Stage.TARGET),
    ):
        with pytest.raises(Exception, match="Type-check error"):
            call()
