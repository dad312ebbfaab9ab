"""`decodery next-byte`."""

from __future__ import annotations

import json
from typing import Any

import pytest


def test_the_likeliest_bytes_are_shown(command: Any) -> None:
    told = json.loads(command("next-byte", "hi", "--top", "3", "--json").out)
    assert len(told["next"]) == 3
    assert sum(one["probability"] for one in told["next"]) + told["end"] <= 1 + 1e-6
    shown = command("next-byte", "hi", "--top", "3").out
    assert str(told["next"][0]["byte"]) in shown
    assert f"{told['next'][0]['probability']:.4f}" in shown
    assert "end" in shown
    talk = json.loads(command("next-byte", "hi", "--chat", "--json").out)
    assert talk["next"] != told["next"]
    assert len(talk["next"]) == 10


@pytest.mark.parametrize("top", ["0", "257"])
def test_a_number_of_bytes_that_cannot_be(command: Any, top: str) -> None:
    refused = command("next-byte", "hi", "--top", top)
    assert refused.code == 2
    assert "--top is a number of bytes, 1 to 256" in refused.err
