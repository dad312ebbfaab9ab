"""Our end of the conversation with an engine: a process that stays alive, and stands still while others measure."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

SCRIPTS = Path(__file__).parent / "workers"
LOAD_SECONDS = 1800.0
"""vLLM compiles its model during the first load."""
ANSWER_SECONDS = 900.0
_FOREIGN = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV", "MKL_NUM_THREADS")
"""Variables that belong to the environment of this process and not to an engine's."""


class EngineFailed(Exception):
    """An engine could not be loaded or did not answer; one sentence."""


@dataclass(frozen=True)
class Turn:
    """One answer. tokens: the new ones of each prompt. seconds: wall clock in the worker, prefill included."""

    tokens: list[list[int]]
    seconds: float
    first_token_seconds: float | None
    told: dict[str, Any]

    @property
    def new_tokens(self) -> int:
        """Of all prompts together."""
        return sum(len(tokens) for tokens in self.tokens)


class Worker:
    """A process that runs one engine with one model.

    It is stopped (SIGSTOP) whenever it is not asked, so that threads which go on spinning after an answer take nothing from the
    others. Use it as a context manager. Raises EngineFailed where the process ends, answers with an error or is too late.
    """

    def __init__(
        self,
        name: str,
        python: Path,
        script: Path,
        log: Path,
        environment: Mapping[str, str] | None = None,
        keep_path: bool = False,
    ):
        """script: speaks the protocol of `workers/lines.py`. log: gets what the engine prints. environment: variables for it.
        keep_path: it runs in our own environment, so PYTHONPATH is meant for it too."""
        self.name, self._log_path = name, log
        inherited = {key: value for key, value in os.environ.items() if keep_path or key not in _FOREIGN}
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log: IO[bytes] = log.open("wb")
        self._process = subprocess.Popen(
            [str(python), str(script)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**inherited, **(environment or {})},
            start_new_session=True,  # a group of its own, with whatever processes the engine starts
            text=True,
        )
        self._lines: queue.Queue[str | None] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put(None)

    def load(self, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Load the model; versions, settings in force and seconds."""
        return self._ask({"op": "load", "settings": dict(settings)}, LOAD_SECONDS)

    def measure(self) -> dict[str, float]:
        """What a worker that decodes nothing finds out."""
        return self._ask({"op": "measure"}, ANSWER_SECONDS)

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        new_tokens: int,
        *,
        ends: Sequence[int] = (),
        way: str = "",
        session: str = "",
    ) -> Turn:
        """Decode prompts together, greedily."""
        reply = self._ask(
            {
                "op": "generate",
                "prompts": [list(prompt) for prompt in prompts],
                "new_tokens": new_tokens,
                "ends": list(ends),
                "way": way,
                "session": session,
            },
            ANSWER_SECONDS,
        )
        tokens = reply["tokens"]
        if len(tokens) != len(prompts) or not all(tokens):
            raise EngineFailed(f"{self.name} answered {len(tokens)} of {len(prompts)} prompts, or some with nothing.")
        if not ends and any(len(answer) != new_tokens for answer in tokens):
            counts = sorted({len(answer) for answer in tokens})
            raise EngineFailed(f"{self.name} gave {counts} tokens where {new_tokens} were asked for.")
        return Turn(tokens, float(reply["seconds"]), reply.get("first_token_seconds"), reply.get("told") or {})

    def _ask(self, request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
        self._signal(signal.SIGCONT)
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=seconds)
        except BrokenPipeError:
            line = None
        except queue.Empty:
            raise EngineFailed(f"{self.name} did not answer within {seconds:.0f} seconds.") from None
        if line is None:
            code = self._process.wait()
            raise EngineFailed(f"{self.name} ended with code {code}; the last line of {self._log_path}: {self._last()}")
        self._signal(signal.SIGSTOP)
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise EngineFailed(f"{self.name}: {reply['error']}")
        return reply

    def _last(self) -> str:
        lines = self._log_path.read_text("utf-8", errors="replace").strip().splitlines()
        return lines[-1].strip() if lines else "(nothing)"

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def close(self) -> None:
        """End the process and all that it started."""
        if self._process.poll() is None:
            self._signal(signal.SIGCONT)
            assert self._process.stdin is not None
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                self._process.stdin.write(json.dumps({"op": "stop"}) + "\n")
                self._process.stdin.close()
                self._process.wait(timeout=15)
        self._signal(signal.SIGKILL)
        self._process.wait()
        self._log.close()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *details: object) -> None:
        self.close()
