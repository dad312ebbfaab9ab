"""Tasks whose answers are programs, and the place where they run."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from decodery.errors import BadInput
from decodery.evaluation.programs import ProgramTask, load_tasks
from decodery.evaluation.sandbox import MEBIBYTE, run_program


def test_a_program_passes_where_it_comes_to_its_end() -> None:
    assert run_program("x = [1, 2]\nassert sum(x) == 3\nprint('said')").passed
    assert run_program("import math, collections, re, heapq\nassert math.pi > 3").passed
    ran = run_program("assert 1 == 2, 'no'")
    assert (ran.passed, ran.error) == (False, "AssertionError: no")
    assert run_program("def f(:").error.startswith("SyntaxError")


@pytest.mark.parametrize("leaving", ["import os; os._exit(0)", "import sys; sys.exit(0)", "raise SystemExit", "quit()"])
def test_leaving_early_is_not_passing(leaving: str) -> None:
    ran = run_program(f"{leaving}\nassert False")
    assert not ran.passed
    assert ran.error


def test_a_report_cannot_be_made_up() -> None:
    assert not run_program('report.write(\'{"word": "x"}\')').passed
    said = """
import json, os
for channel in range(3, 20):
    try:
        os.write(channel, json.dumps({"word": "guess"}).encode())
    except OSError:
        pass
os._exit(0)
"""
    assert not run_program(said).passed


def test_time_and_memory_are_bounded() -> None:
    started = time.monotonic()
    assert run_program("while True: pass", seconds=1).error == "time"
    assert run_program("import time; time.sleep(60)", seconds=1).error == "time"
    assert time.monotonic() - started < 20
    assert run_program("x = bytearray(300 << 20)", memory=200 * MEBIBYTE).error.startswith("MemoryError")
    assert run_program("x = bytearray(300 << 20)", memory=800 * MEBIBYTE).passed
    assert run_program("def f(): return f()\nf()").error.startswith("RecursionError")


@pytest.mark.parametrize(
    "harm",
    [
        "open('{file}', 'w')",
        "open('{file}', 'r+')",
        "import os; os.open('{file}', os.O_WRONLY | os.O_CREAT)",
        "from pathlib import Path; Path('{file}').write_text('x')",
        "import os; os.remove('{file}')",
        "import os; os.rename('{file}', '{file}2')",
        "import shutil; shutil.rmtree('{folder}')",
        "import os; os.system('true')",
        "import subprocess; subprocess.run(['true'])",
        "import os; os.fork()",
        "import socket; socket.socket()",
        "import ctypes; ctypes.CDLL(None)",
        "import os, signal; os.kill(os.getppid(), signal.SIGTERM)",
        "import sys; sys.addaudithook(print); open('{file}', 'w')",
    ],
)
def test_nothing_outside_is_touched(harm: str, tmp_path: Path) -> None:
    file = tmp_path / "kept.txt"
    file.write_text("kept", "utf-8")
    ran = run_program(harm.format(file=file, folder=tmp_path))
    assert not ran.passed
    assert "PermissionError" in ran.error
    assert file.read_text("utf-8") == "kept"
    assert [entry.name for entry in tmp_path.iterdir()] == ["kept.txt"]


def test_secrets_of_the_environment_stay_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_TEST", "1")
    assert run_program("import os; assert 'SECRET_OF_THE_TEST' not in os.environ").passed


def test_own_tasks_accept_their_solutions_and_nothing_less() -> None:
    tasks = load_tasks()
    assert len({task.name for task in tasks}) == len(tasks) >= 20
    for task in tasks:
        assert task.solution.startswith(task.start)
        assert task.run(task.solution.removeprefix(task.start)).passed, task.name
    for task in tasks[::5]:
        assert not task.run(" return None\n").passed, task.name


def test_an_answer_ends_before_what_is_not_indented() -> None:
    task = ProgramTask("one", "def f():\n", "", "assert f() == 1", start="")
    assert task.run("    return 1\n\ndef f():\n    return 2").passed
    assert task.run("    return 1\nprint(1/0)").passed
    assert not task.run("    return 2\n# return 1").passed
    assert task.run("    return 1\nclass A:\n    1/0\nprint(1/0)").passed
    assert not task.run("\nprint(1)\n    return 1").passed
    assert ProgramTask("none", "x = 1", "", "assert x == 1").run("\nprint(1/0)").passed


def test_published_forms_are_read(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    mbpp = {
        "task_id": 7,
        "text": "Write a function to double.",
        "code": "def double(x):\r\n  return 2 * x",
        "test_list": ["assert double(FOUR) == 8", "assert double(0) == 0"],
        "test_setup_code": "FOUR = 4",
    }
    human = {
        "task_id": "H/0",
        "prompt": "def g():\n",
        "canonical_solution": "    return 3\n",
        "test": "def check(c):\n    assert c() == 3",
        "entry_point": "g",
    }
    file.write_text(json.dumps(mbpp) + "\n" + json.dumps(human) + "\n", "utf-8")
    one, other = load_tasks(file)
    assert one.prompt == '"""\nWrite a function to double.\nassert double(FOUR) == 8\n"""\n'
    assert one.solution == "def double(x):\n  return 2 * x\n"
    assert one.run(one.solution).passed
    assert not one.run("def double(x):\n  return 8").passed
    assert one.run("import math\ndef double(x):\n  return 2 * x\nassert False").passed
    assert (one.name, other.name) == ("7", "H/0")
    assert other.run(" return 3\n").passed
    assert not other.run(" return 4\n").passed


def test_what_is_no_task_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "tasks.jsonl"
    file.write_text('{"task_id": 1}\n', "utf-8")
    with pytest.raises(BadInput, match=r"line 1 of .* is no task in HumanEval's or MBPP's form"):
        load_tasks(file)
    file.write_text("\n", "utf-8")
    with pytest.raises(BadInput, match="holds no task"):
        load_tasks(file)
