"""Compiling the native decoder: once per machine, with whatever C compiler is there."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable
from ctypes import CDLL
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from decodery.errors import BadSetting
from decodery.models.cache import home
from decodery.models.native import binding
from decodery.models.processors import CPUINFO, processors

log = logging.getLogger("decodery")

SOURCES = (
    "decoder.c",
    "decoder.h",
    "attention.h",
    "arithmetic.h",
    "lanes.h",
    "lanes_avx512.h",
    "lanes_avx2.h",
    "weights.h",
    "integers.h",
    "packing.h",
    "products.h",
    "matrix_unit.h",
    "vectors.h",
    "multiply_adds.h",
    "ranking.h",
    "threads.h",
    "workspace.h",
)
FLAGS = ("-O3", "-std=gnu11", "-fPIC", "-shared", "-pthread")


@dataclass(frozen=True)
class Instructions:
    """A set of instructions that the decoder is compiled for.

    name: as DECODERY_PROCESSOR has it. features: what Linux calls them, of a processor that has them. flags: what compilers
    call them.
    """

    name: str
    features: tuple[str, ...]
    flags: tuple[str, ...]

    def and_also(self, name: str, **more: str) -> Instructions:
        """These and others: feature -> what compilers call it, without the -m."""
        return Instructions(
            name, self.features + tuple(more), self.flags + tuple(f"-m{flag}" for flag in more.values())
        )


_NOTHING = Instructions("", (), ())
AVX2 = _NOTHING.and_also("avx2", avx2="avx2", fma="fma", f16c="f16c", bmi2="bmi2")
AVX_VNNI = AVX2.and_also("avxvnni", avx_vnni="avxvnni")
AVX512 = AVX2.and_also(
    "avx512",
    avx512f="avx512f",
    avx512bw="avx512bw",
    avx512dq="avx512dq",
    avx512vl="avx512vl",
    avx512_bf16="avx512bf16",
    avx512_vnni="avx512vnni",
)
AMX = AVX512.and_also("amx", amx_tile="amx-tile", amx_bf16="amx-bf16", amx_int8="amx-int8")
SETS = (AMX, AVX512, AVX_VNNI, AVX2)
"""The best first. A processor with AVX-512 but without its bfloat16 instructions is taken for one with AVX2."""
CHOICE = "DECODERY_PROCESSOR"
"""The environment variable that takes one of SETS in place of the best that the processor has."""
SECONDS = 120
_compiling = threading.Lock()
"""One compiler at a time: who comes second finds what the first has made."""


class NotBuilt(RuntimeError):
    """The native decoder cannot run here; the text says why."""


def compilers() -> list[list[str]]:
    """Commands that compile C, the preferred one first: $CC, the system's, or the one of the package ziglang."""
    found = []
    if os.environ.get("CC"):
        found.append(shlex.split(os.environ["CC"]))
    found.extend([path] for name in ("cc", "gcc", "clang") if (path := shutil.which(name)))
    try:
        import ziglang  # noqa: F401
    except ImportError:
        pass
    else:
        found.append([sys.executable, "-m", "ziglang", "cc"])
    return found


def usable(cpuinfo: Path = CPUINFO) -> tuple[Instructions, ...]:
    """Which of SETS this machine has, the best first; or the one that the environment chooses. Empty where it has none.

    Raises BadSetting where the environment names one that is unknown, or that is not there.
    """
    told = processors(cpuinfo).get("flags", set())
    common = set.intersection(*(set(flags.split()) for flags in told)) if told else set()
    there = tuple(one for one in SETS if common.issuperset(one.features)) if _written_for() else ()
    chosen = os.environ.get(CHOICE)
    if not chosen:
        return there
    if chosen not in (one.name for one in SETS):
        raise BadSetting(f"{CHOICE} is {chosen!r}, but must be {_listed(one.name for one in SETS)}.")
    taken = tuple(one for one in there if one.name == chosen)
    if not taken:
        has = f"has {_listed((one.name for one in there), 'and')} only" if there else "has none of these"
        raise BadSetting(f"{CHOICE} is {chosen}, but this machine {has}.")
    return taken


def _written_for() -> bool:
    return platform.system() == "Linux" and platform.machine() == "x86_64"


def _listed(names: Iterable[str], last: str = "or") -> str:
    *first, end = names
    return f"{', '.join(first)} {last} {end}" if first else end


@cache
def library() -> CDLL:
    """The compiled decoder, ready to be called. Raises NotBuilt where this machine cannot have it, BadSetting where the
    environment chooses what is not there."""
    if not _written_for():
        raise NotBuilt("it is written for Linux on x86-64")
    sets = usable()
    if not sets:
        raise NotBuilt("the processor has not all of the instructions AVX2, FMA, F16C and BMI2")
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


def _place(flags: Iterable[str], name: str) -> Path:
    """Where the decoder is kept that such flags make of the sources, for a set of instructions on this processor."""
    told = processors()
    processor = [*sorted(told.get("model name", ())), *sorted(told.get("flags", ()))]
    texts = ((Path(__file__).parent / source).read_text() for source in SOURCES)
    digest = hashlib.sha256("\0".join([*flags, *processor, *texts]).encode()).hexdigest()
    return home() / "native" / f"decoder-{name}-{digest[:16]}.so"


def _compiled(instructions: Instructions, extra: tuple[str, ...]) -> Path:
    flags = [*FLAGS, *instructions.flags, *extra]
    place = _place(flags, instructions.name)
    if place.exists():
        return place
    commands = compilers()
    if not commands:
        raise NotBuilt("there is no C compiler (install gcc, or `pip install ziglang`)")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotBuilt(f"{place.parent} cannot be written ({error.strerror})") from error
    failures = []
    for command in commands:
        with tempfile.TemporaryDirectory(dir=place.parent) as scratch:
            made = Path(scratch) / place.name
            line = [*command, *flags, str(Path(__file__).parent / "decoder.c"), "-o", str(made), "-lm"]
            try:
                done = subprocess.run(line, capture_output=True, text=True, timeout=SECONDS)
            except (OSError, subprocess.TimeoutExpired) as error:
                failures.append(f"{command[0]}: {error}")
                continue
            if done.returncode == 0:
                os.replace(made, place)
                log.info("compiled the native decoder for %s with %s", instructions.name, " ".join(command))
                return place
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
            failures.append(f"{' '.join(command)}: {first}")
    raise NotBuilt("; ".join(failures))
