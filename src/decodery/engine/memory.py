"""How much memory keys and values may take: what a request can need at most, who holds how much, and who has to wait."""

from __future__ import annotations

import math
import os
import re
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

from decodery.errors import BadSetting, NotEnoughMemory
from decodery.plain import plain

if TYPE_CHECKING:
    from decodery.engine.method import Method
    from decodery.engine.request import Request
    from decodery.models.scorer import Scorer

UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
UNITS |= {f"{unit[0]}iB": 1 << 10 * power for power, unit in enumerate(UNITS) if power}
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*([a-zA-Z]*)\s*")
SHARE = 0.5
"""Which share of the memory that is free when it is first needed an automatic budget takes."""
UNKNOWN = 1 << 30
"""Free memory where the system does not tell."""


def parse_size(name: str, value: object) -> int:
    """Bytes of a size as a user gives it: a number of bytes, or text such as "2GB", "512 MiB", "1.5g".

    name: of the setting, for the message. Raises BadSetting.
    """
    value = plain(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 1:
        return int(value)
    if isinstance(value, str) and (match := _SIZE.fullmatch(value)):
        word = match[2].lower()
        units = {unit.lower(): size for unit, size in UNITS.items()}
        units |= {unit[0].lower(): size for unit, size in UNITS.items() if "i" not in unit}
        size = float(match[1]) * units.get(word or "b", 0)
        if size >= 1:
            return int(size)
    raise BadSetting(f"{name} must be a size such as 2GB or 512MB (units {', '.join(UNITS)}), not {value!r}.")


def parse_budget(value: object) -> int | None:
    """Bytes of a KV budget as a user gives it; None where it is automatic (None, "auto"). Raises BadSetting."""
    return None if value is None or value == "auto" else parse_size("kv_budget", value)


def size_text(size: float) -> str:
    """A number of bytes for people."""
    for unit, of in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("KB", 10**3)):
        if size >= 0.9995 * of:
            return f"{size / of:.3g} {unit}"
    return f"{size:.0f} B"


def free_memory(device: str = "cpu") -> int:
    """Bytes that are free on a device now. On a processor also what the container's limit leaves."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.mem_get_info(torch.device(device))[0])
    found = [_available()]
    for limit, used in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        most, now = _number(Path("/sys/fs/cgroup") / limit), _number(Path("/sys/fs/cgroup") / used)
        if most is not None and now is not None:
            found.append(max(most - now, 0))
    return min(found)


def _available() -> int:
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass  # another system, which may answer the next question
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return UNKNOWN


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such control group, or "max"
        return None


class Room(NamedTuple):
    """What one sequence of a request can need: of a network, so many rows at most, of which the first `shared` are those of the
    sequence that it is a fork of."""

    network: Scorer
    rows: int
    shared: int = 0


@dataclass(frozen=True)
class Need:
    """What a task can need at most.

    bytes: of keys and values, all its sequences together. rows: network (by id) -> most rows of one of its sequences. parts:
    for people, of each sequence its network's name and rows.
    """

    bytes: int
    rows: Mapping[int, int]
    parts: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, request: Request, method: Method) -> Need:
        """Of a request that is decoded by a method."""
        return cls.of_caches(method.caches(request))

    @classmethod
    def of_caches(cls, caches: Sequence[tuple[Scorer, int] | Room]) -> Need:
        """Of sequences that are there at once: of each, its network and the most rows that it may have; see `Room`."""
        rooms = [Room(*entry) for entry in caches]
        rows: dict[int, int] = {}
        for room in rooms:
            rows[id(room.network)] = max(room.rows, rows.get(id(room.network), 0))
        # A task cannot tell its sequences of one network apart, so each may get as long as the longest.
        size = sum(room.network.cache_bytes(rows[id(room.network)], room.shared) for room in rooms)
        return cls(size, rows, tuple((room.network.name, room.rows) for room in rooms))


class Sharer(Protocol):
    """A scheduler, as those see it that draw on the same budget."""

    @property
    def waiting(self) -> int: ...
    @property
    def can_step(self) -> bool: ...
    def make_room(self, size: int) -> None: ...
    def step(self) -> None: ...


class KVBudget:
    """A ledger of the memory of keys and values, shared by all that decode with one model. Not thread-safe.

    total: bytes; None: the ledger only counts. held: what admitted requests may need, and kept prefixes take, together; it
    never exceeds the total. peak: the most that was held. most_waiting: the most requests that ever waited.
    """

    def __init__(self, total: int | None = None):
        self.total = total
        self.held = self.peak = self.most_waiting = 0
        self._schedulers: weakref.WeakSet[Sharer] = weakref.WeakSet()

    def fits(self, size: int) -> bool:
        """Whether so many bytes are left."""
        return self.total is None or self.held + size <= self.total

    def take(self, size: int) -> None:
        """Hold so many bytes more. Raises ValueError where they do not fit."""
        if not self.fits(size):
            raise ValueError(f"{size} bytes do not fit beside {self.held} of {self.total}")
        self.held += size
        self.peak = max(self.peak, self.held)

    def give_back(self, size: int) -> None:
        """Hold so many bytes less."""
        self.held -= size

    @property
    def waiting(self) -> int:
        """Requests that wait for memory now."""
        return sum(scheduler.waiting for scheduler in self._schedulers)

    def note_queue(self) -> None:
        """Called when a request has come: note how many wait."""
        self.most_waiting = max(self.most_waiting, self.waiting)

    def check(self, need: Need) -> None:
        """Raise NotEnoughMemory where a request could never be admitted."""
        if self.total is None or need.bytes <= self.total:
            return
        parts = ", ".join(f"{rows} rows of {name}" for name, rows in dict.fromkeys(need.parts))
        times = "" if len(set(need.parts)) == len(need.parts) else f" in {len(need.parts)} caches"
        raise NotEnoughMemory(
            f"the request can need up to {size_text(need.bytes)} of keys and values ({parts}{times}), but the KV budget is "
            f"{size_text(self.total)}; shorten the prompt, lower max_new_tokens, or raise kv_budget."
        )

    def join(self, scheduler: Sharer) -> None:
        """A scheduler draws on this budget."""
        self._schedulers.add(scheduler)

    def others(self, scheduler: Sharer) -> list[Sharer]:
        """The other schedulers that draw on this budget."""
        return [other for other in self._schedulers if other is not scheduler]

    def as_dict(self) -> dict[str, int | None]:
        """For JSON."""
        return {
            "total": self.total,
            "held": self.held,
            "peak": self.peak,
            "waiting": self.waiting,
            "most_waiting": self.most_waiting,
        }


def budget_for(network: Scorer, setting: object = None) -> KVBudget:
    """The budget of a setting: None or "auto" is half of what is free on the network's device now, anything else a size."""
    if setting is None or setting == "auto":
        if network.cache_bytes(1) == 0:
            return KVBudget()
        return KVBudget(int(SHARE * free_memory(str(network.device))))
    return KVBudget(parse_size("kv_budget", setting))
