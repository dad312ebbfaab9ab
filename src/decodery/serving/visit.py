"""One HTTP request, as the log and errors know it."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from decodery.serving.keys import Caller


@dataclass
class Visit:
    """One HTTP request. arrived: as `time.perf_counter` says. told: what its log line says besides.
    context: what its spans stand beneath, see `spans.context_of`."""

    id: str
    caller: Caller
    arrived: float = field(default_factory=time.perf_counter)
    told: dict[str, Any] = field(default_factory=dict)
    context: Any = None
