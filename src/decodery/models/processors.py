"""What Linux says of the processors."""

from __future__ import annotations

import contextlib
from pathlib import Path

CPUINFO = Path("/proc/cpuinfo")
"""Where it stands."""


def processors(cpuinfo: Path = CPUINFO) -> dict[str, set[str]]:
    """Field -> its values, of all processors, since not all of a machine are alike. Empty where there is no such file."""
    told: dict[str, set[str]] = {}
    with contextlib.suppress(OSError):
        for line in cpuinfo.read_text("utf-8", "replace").splitlines():
            name, _, value = line.partition(":")
            told.setdefault(name.strip(), set()).add(" ".join(value.split()))
    return told
