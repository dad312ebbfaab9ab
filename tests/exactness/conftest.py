"""Statistical tests decode tens of thousands of requests."""

from __future__ import annotations

from collections.abc import Iterator

import jaxtyping
import pytest


@pytest.fixture(autouse=True)
def _without_shape_checks() -> Iterator[None]:
    """Checking shapes takes longer than decoding here; the unit tests of these rooms check them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _with_adapters(toy_adapters: None) -> None:
    """The matrix tries methods on networks that no adapter is shipped for."""
