"""Runs a Python program that a model wrote, in a process of its own with little time, little memory and no way out.

It keeps apart what goes wrong by accident: endless loops, full memories and disks, files that are written or removed, other
programs, the network. It is no wall against malice: use a virtual machine for programs of people you do not trust.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

MEBIBYTE = 1 << 20
GUARD = r"""
import json, os, resource, sys

report = os.fdopen(os.dup(1), "w")
word, seconds, memory = sys.stdin.read().split()
source = open("program.py", encoding="utf-8").read()
silent = os.open(os.devnull, os.O_RDWR)
for channel in (0, 1, 2):
    os.dup2(silent, channel)
for what, most in (("CPU", int(seconds) + 1), ("AS", int(memory)), ("FSIZE", 1 << 20), ("CORE", 0)):
    resource.setrlimit(getattr(resource, "RLIMIT_" + what), (most, most))

REFUSED = ("socket.", "subprocess.", "ctypes.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "os.kill",
           "os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.link", "os.symlink", "os.chmod", "os.chown", "os.truncate",
           "os.putenv", "shutil.", "signal.", "pty.", "ftplib.", "urllib.", "webbrowser.", "sqlite3.", "tempfile.")

def guard(event, given):
    if event.startswith(REFUSED):
        raise PermissionError(event + " is not allowed here")
    if event == "open":
        mode, flags = given[1], given[2] or 0
        writes = isinstance(mode, str) and set(mode) & set("wax+")
        if writes or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            raise PermissionError("nothing may be written here")

sys.addaudithook(guard)
try:
    exec(compile(source, "program.py", "exec"), {"__name__": "program"})
    said = {"word": word}
except BaseException as error:
    said = {"error": f"{type(error).__name__}: {error}".strip(": ")}
report.write(json.dumps(said))
report.flush()
os._exit(0)
"""
"""What the process does: limits and an audit hook, which no program can take back, then the program, then the report. The word
is only said where the program came to its end, so that one that leaves early has not passed."""


@dataclass(frozen=True)
class Ran:
    """What became of a program. passed: it came to its end without an error; error: what it raised, "time" where it ran for
    too long, or "ended early"."""

    passed: bool
    error: str = ""


def run_program(source: str, seconds: int = 5, memory: int = 512 * MEBIBYTE) -> Ran:
    """Runs a Python program. seconds: of time; memory: bytes of address space."""
    word = secrets.token_hex(16)
    with tempfile.TemporaryDirectory(prefix="decodery-program-") as folder:
        Path(folder, "program.py").write_text(source, "utf-8", errors="surrogatepass")
        process = subprocess.Popen(
            [sys.executable, "-I", "-c", GUARD],
            cwd=folder,
            env={"PATH": os.defpath, "PYTHONHASHSEED": "0"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            output, _ = process.communicate(f"{word} {seconds} {memory}".encode(), timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return Ran(False, "time")
    said = json.loads(output) if output else {"error": "ended early"}
    return Ran(said.get("word") == word, said.get("error", ""))
