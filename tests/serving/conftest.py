"""One server for most tests of a file: a toy model, and the masked-diffusion model that comes with the package."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from serving_models import Running, serving


@pytest.fixture(scope="module")
def server() -> Iterator[Running]:
    with serving(models=("toy", "diffusion-stories")) as running:
        yield running
        running.wait_idle()
