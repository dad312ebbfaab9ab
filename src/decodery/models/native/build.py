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
from ctypes import CDLL
from functools import cache
from pathlib import Path

from decodery.models.cache import home
from decodery.models.native import binding

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
    "products.h",
    "matrix_unit.h",
    "vectors.h",
    "multiply_adds.h",
    "ranking.h",
    "threads.h",
    "workspace.h",
)
FLAGS = ("-O3", "-march=native", "-std=gnu11", "-fPIC", "-shared", "-pthread")
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


def _processor() -> str:
    """What tells processors with other instructions apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith("flags")), "")


@cache
def library() -> CDLL:
    """The compiled decoder, ready to be called. Raises NotBuilt where this machine cannot have it."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise NotBuilt("it is written for Linux on x86-64")
    for extra in ((), ("-DDECODERY_NO_AMX",)):
        built = binding.load(compiled(extra))
        if built.decodery_ready():
            return built
    raise NotBuilt("the system does not let it use the matrix unit")


def prepare() -> None:
    """Begin to compile what `library` will want, beside whatever the caller does meanwhile."""

    def build() -> None:
        with contextlib.suppress(NotBuilt):  # who asks for the library is told
            library()

    threading.Thread(target=build, name="decodery compiles", daemon=True).start()


def compiled(extra: tuple[str, ...]) -> Path:
    """The decoder compiled with some flags more than FLAGS, kept from one process to the next. Raises NotBuilt."""
    with _compiling:
        return _compiled(extra)


def _compiled(extra: tuple[str, ...]) -> Path:
    sources = Path(__file__).parent
    text = "\0".join([*FLAGS, *extra, _processor(), *((sources / name).read_text() for name in SOURCES)])
    place = home() / "native" / f"decoder-{hashlib.sha256(text.encode()).hexdigest()[:16]}.so"
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
            line = [*command, *FLAGS, *extra, str(sources / "decoder.c"), "-o", str(made), "-lm"]
            try:
                done = subprocess.run(line, capture_output=True, text=True, timeout=SECONDS)
            except (OSError, subprocess.TimeoutExpired) as error:
                failures.append(f"{command[0]}: {error}")
                continue
            if done.returncode == 0:
                os.replace(made, place)
                log.info("compiled the native decoder with %s", " ".join(command))
                return place
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
            failures.append(f"{' '.join(command)}: {first}")
    raise NotBuilt("; ".join(failures))
