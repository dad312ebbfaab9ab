"""Which compiled decoder this machine runs: one that came with the package, or one that is compiled on first use."""

from __future__ import annotations

import contextlib
import logging
import os
import platform
import threading
from collections.abc import Iterable
from ctypes import CDLL
from functools import cache
from pathlib import Path

from decodery.errors import BadSetting
from decodery.models.cache import home
from decodery.models.native import binding
from decodery.models.native.compiling import AMX as AMX
from decodery.models.native.compiling import AVX2 as AVX2
from decodery.models.native.compiling import BUILT, SETS, Instructions, NotBuilt, compile_to, file_name
from decodery.models.native.compiling import NEON as NEON
from decodery.models.native.compiling import SOURCES as SOURCES
from decodery.models.processors import CPUINFO, processors

log = logging.getLogger("decodery")

CHOICE = "DECODERY_PROCESSOR"
"""The environment variable that takes one of SETS in place of the best that the processor has."""
PROCESSOR = ("model name", "flags", "CPU implementer", "CPU part", "Features")
"""What Linux says that tells processors apart: on x86, and on Arm."""
_compiling = threading.Lock()
"""One compiler at a time: who comes second finds what the first has made."""


def chosen_set() -> str:
    """The set of instructions that the environment names; empty: none."""
    return os.environ.get(CHOICE, "")


def usable(cpuinfo: Path = CPUINFO) -> tuple[Instructions, ...]:
    """Which of SETS this machine has, the best first; or the one that the environment chooses. Empty where it has none.

    Raises BadSetting where the environment names one that is unknown, or that is not there.
    """
    told = processors(cpuinfo)
    features = told.get("flags", set()) | told.get("Features", set())  # on x86 and on Arm
    common = set.intersection(*(set(each.split()) for each in features)) if features else set()
    known = _known()
    there = tuple(one for one in known if common.issuperset(one.features))
    chosen = chosen_set()
    if not chosen:
        return there
    if known and chosen not in (one.name for one in known):
        raise BadSetting(f"{CHOICE} is {chosen!r}, but must be {_listed(one.name for one in known)}.")
    taken = tuple(one for one in there if one.name == chosen)
    if not taken:
        has = f"has {_listed((one.name for one in there), 'and')} only" if there else "has none of these"
        raise BadSetting(f"{CHOICE} is {chosen}, but this machine {has}.")
    return taken


def _known() -> tuple[Instructions, ...]:
    """Which sets there are for machines of this kind; empty where the decoder is not written for it."""
    return SETS.get(platform.machine(), ()) if platform.system() == "Linux" else ()


def _listed(names: Iterable[str], last: str = "or") -> str:
    *first, end = names
    return f"{', '.join(first)} {last} {end}" if first else end


@cache
def library() -> CDLL:
    """The compiled decoder, ready to be called. Raises NotBuilt where this machine cannot have it, BadSetting where the
    environment chooses what is not there."""
    known = _known()
    if not known:
        raise NotBuilt("it is written for Linux on x86-64 and on 64-bit Arm")
    sets = usable()
    if not sets:
        wanted = _listed((feature.upper() for feature in known[-1].features), "and")
        raise NotBuilt(f"the processor has not all of the instructions {wanted}")
    for one in sets:
        if (built := ready(one)) is not None:
            return built
    raise NotBuilt("the system does not let it use the matrix unit")


def ready(instructions: Instructions) -> CDLL | None:
    """The decoder compiled for some instructions; None where the system does not let this process use them. Raises NotBuilt."""
    built = binding.load(compiled(instructions))
    return built if built.decodery_ready() else None


def prepare() -> None:
    """Begin to compile what `library` will want, beside whatever the caller does meanwhile. Raises BadSetting, see `usable`."""
    usable()

    def build() -> None:
        with contextlib.suppress(NotBuilt):  # who asks for the library is told
            library()

    threading.Thread(target=build, name="decodery compiles", daemon=True).start()


def compiled(instructions: Instructions, *extra: str) -> Path:
    """The decoder compiled for some instructions, with some flags more; kept from one process to the next. Raises NotBuilt."""
    with _compiling:
        return _compiled(instructions, extra)


def _compiled(instructions: Instructions, extra: tuple[str, ...]) -> Path:
    shipped = BUILT / file_name(instructions, extra)
    if shipped.exists():
        return shipped
    told = processors()
    # Two machines that share a home may have compilers that choose differently for their processors.
    processor = [value for name in PROCESSOR for value in sorted(told.get(name, ()))]
    place = home() / "native" / file_name(instructions, extra, processor)
    if not place.exists():
        command = compile_to(place, instructions, extra)
        log.info("compiled the native decoder for %s with %s", instructions.name, command)
    return place
