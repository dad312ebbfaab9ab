"""Statistical tests decode tens of thousands of requests."""

from __future__ import annotations

from collections.abc import Iterator

import jaxtyping
import pytest
from toy_adapters import Passing, toy_adapter

from decodery.engine.request import Request
from decodery.speculative.kangaroo.adapter import Adapter
from decodery.speculative.kangaroo.method import Kangaroo


@pytest.fixture(autouse=True)
def _without_shape_checks() -> Iterator[None]:
    """Checking shapes takes longer than decoding here; the unit tests of these rooms check them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.fixture(autouse=True)
def _toy_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    found = Kangaroo._adapter

    def adapter(self: Kangaroo, request: Request) -> Adapter:
        if self.adapter != "auto":
            return found(self, request)
        return request.remember(("toy adapter",), lambda: toy_adapter(request.host.network), everywhere=True)

    network = Adapter.network
    monkeypatch.setattr(Kangaroo, "_adapter", adapter)
    monkeypatch.setattr(  # the rows of scorers without a network are numbers of prefixes, which nothing may change
        Adapter, "network", lambda self, target: network(self, target) if target.timed else Passing(target.hidden)
    )
