"""One server for most tests of a file: a toy model, and the masked-diffusion model that comes with the package."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pytest
from serving_models import Running, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(models=("toy", "diffusion-stories")) as running:
        yield running
        running.wait_idle()


@dataclass
class Called:
    """What a call of the command did."""

    code: int
    out: str
    err: str


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Called]:
    """Calls `decodery` with arguments, as from a shell without a terminal."""
    from decodery.cli.main import main

    def call(*arguments: str) -> Called:
        monkeypatch.setattr("sys.stdin", io.StringIO())
        capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main(arguments)
        captured = capsys.readouterr()
        code = ended.value.code
        return Called(code if isinstance(code, int) else 0, captured.out, captured.err)

    return call
