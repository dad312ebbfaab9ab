"""What all tests share: shape checks at run time, fixed seeds, one thread, and a home of their own."""

from __future__ import annotations

import os
import random
import secrets
from collections.abc import Iterator
from pathlib import Path

from jaxtyping import install_import_hook

# Before anything of decodery is imported: these check the shapes in their annotations on every call. Not the noise, which is
# asked millions of times in tests of laws.
CHECKED = ["decodery.sampling.law", "decodery.sampling.top", "decodery.speculative.verifiers"]
install_import_hook(CHECKED, "beartype.beartype")

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

# The machines that run tests are of very different speeds: a slow example is no failure. What decides whether a change
# lands tries the same examples each time; everybody else tries new ones.
settings.register_profile("decodery", deadline=None, print_blob=True, derandomize=bool(os.environ.get("CI")))
settings.load_profile("decodery")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny networks are slower on many threads, and sums of several threads need not be reproducible."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _fixed_seed(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request without a seed draws one: of each test the same ones every time, so that none fails by chance."""
    torch.manual_seed(0)
    monkeypatch.setattr(secrets, "randbits", random.Random(request.node.nodeid).getrandbits)


@pytest.fixture(scope="session")
def _shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("decodery-home")


@pytest.fixture(autouse=True)
def _own_home(request: pytest.FixtureRequest, _shared_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test touches the user's cache, but for those of the real model, which read its weights there."""
    if request.node.get_closest_marker("real_model") is None:
        monkeypatch.setenv("DECODERY_HOME", str(_shared_home))


@pytest.fixture
def toy_adapters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every network has an adapter of kangaroo."""
    from toy_adapters import use_toy_adapters

    use_toy_adapters(monkeypatch)
