"""Compiling the native decoder: which instructions, which flags, with whatever C compiler is there.

Uses nothing but the standard library, so that building the package (`hatch_build.py`) can load this file alone.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

SOURCES = (
    "decoder.c",
    "decoder.h",
    "attention.h",
    "arithmetic.h",
    "lanes.h",
    "lanes_x86.h",
    "lanes_avx512.h",
    "lanes_avx2.h",
    "lanes_neon.h",
    "weights.h",
    "integers.h",
    "dot_products_x86.h",
    "dot_products_neon.h",
    "rounding.h",
    "packing.h",
    "tiles.h",
    "products.h",
    "matrix_unit.h",
    "matrix_integers.h",
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
NEON = Instructions("neon", ("asimd", "atomics", "asimddp"), ("-march=armv8.2-a+dotprod",))
SETS = {"x86_64": (AMX, AVX512, AVX_VNNI, AVX2), "aarch64": (NEON,)}
"""Of each kind of machine, as Linux calls it, the best first. A processor with AVX-512 but without its bfloat16 instructions is
taken for one with AVX2."""
SECONDS = 120
BUILT = Path(__file__).parent / "built"
"""Where the package keeps what was compiled when it was built."""


class NotBuilt(RuntimeError):
    """The native decoder cannot run here; the text says why."""


def file_name(instructions: Instructions, extra: Iterable[str] = (), also: Iterable[str] = ()) -> str:
    """What the decoder compiled for some instructions is called: by the flags and the sources that it is made of, and whatever
    else it depends on."""
    texts = ((Path(__file__).parent / source).read_text() for source in SOURCES)
    told = "\0".join([*FLAGS, *instructions.flags, *extra, *also, *texts])
    return f"decoder-{instructions.name}-{hashlib.sha256(told.encode()).hexdigest()[:16]}.so"


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


def compile_to(place: Path, instructions: Instructions, extra: Iterable[str] = ()) -> str:
    """Compile the decoder to a file, whole or not at all; what did it. Raises NotBuilt."""
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
            line = [
                *command,
                *FLAGS,
                *instructions.flags,
                *extra,
                str(Path(__file__).parent / "decoder.c"),
                "-o",
                str(made),
                "-lm",
            ]
            try:
                done = subprocess.run(line, capture_output=True, text=True, timeout=SECONDS)
            except (OSError, subprocess.TimeoutExpired) as error:
                failures.append(f"{command[0]}: {error}")
                continue
            if done.returncode == 0:
                os.replace(made, place)
                return " ".join(command)
            first = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
            failures.append(f"{' '.join(command)}: {first}")
    raise NotBuilt("; ".join(failures))
