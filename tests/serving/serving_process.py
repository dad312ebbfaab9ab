"""A server in a process of its own, as `decodery serve` starts it."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator

MAIN = [sys.executable, "-c", "from decodery.cli.main import main; main()"]


@contextlib.contextmanager
def process(*arguments: str, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str, list[str]]]:
    """A server over the small model that comes with the package; its address, and what it writes. It is killed in the end."""
    command = [*MAIN, "serve", "--model", "stories-twin", "--port", str(port), "--threads", "1", *arguments]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    lines: list[str] = []
    ready = threading.Event()

    def read() -> None:
        assert running.stderr is not None
        for line in running.stderr:
            lines.append(line.rstrip("\n"))
            if " at http://" in line:
                ready.set()
        ready.set()

    threading.Thread(target=read, daemon=True).start()
    try:
        assert ready.wait(120)
        [told] = [line for line in lines if " at http://" in line] or [""]
        assert told.startswith("decodery serves stories-twin at http://127.0.0.1:"), lines
        yield running, told.rpartition(" ")[2], lines
    finally:
        running.kill()
        running.wait()
