"""The inherited laws decode thousands of requests."""

from __future__ import annotations

from collections.abc import Iterator

import jaxtyping
import pytest


@pytest.fixture(autouse=True)
def _without_shape_checks(request: pytest.FixtureRequest) -> Iterator[None]:
    """Checking shapes takes longer than decoding here; the tests of the verifiers check them."""
    if request.module.__name__ == "test_verifiers":
        yield
        return
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
