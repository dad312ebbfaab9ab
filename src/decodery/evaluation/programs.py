"""Tasks whose answer is a small program: HumanEval's and MBPP's files, and a few of our own; whether an answer passes.

pass@1 of a greedy answer is the share of tasks whose answer passes (Chen et al. 2021, arXiv 2107.03374).
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from decodery.errors import BadInput
from decodery.evaluation.sandbox import Ran, run_program
from decodery.text_files import read_records

BODY_STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint")
"""Where the body of a function ends: at the first of these (Chen et al. 2021, section 2)."""
FILE_STOPS = ("\nclass", "\nassert", '\n"""', "\nprint", "\nif", "\n<|/", "\n```")
"""Where a file that MBPP asks for ends (those of its usual harness)."""
INDENT = "   "
"""How a body begins: one blank less than four, as most tokenizers give the last one to the word behind it."""


@dataclass(frozen=True)
class ProgramTask:
    """A task. prompt: what the model continues; solution: the published continuation; tests: what is run behind prompt and
    continuation, and raises where it is wrong; stops: where an answer ends; start: how it begins, which is given, so that a
    model that was taught to talk does not answer with prose."""

    name: str
    prompt: str
    solution: str
    tests: str
    stops: tuple[str, ...] = BODY_STOPS
    start: str = INDENT

    def run(self, answer: str) -> Ran:
        """What becomes of prompt, start and answer, of which all from the first stop on is left out, and the tests."""
        end = min((place for stop in self.stops if (place := answer.find(stop)) >= 0), default=len(answer))
        return run_program(f"{self.prompt}{self.start}{answer[:end]}\n\n{self.tests}\n")


def load_tasks(path: Path | None = None) -> list[ProgramTask]:
    """Tasks of a file with one JSON object a line, in HumanEval's form (task_id, prompt, canonical_solution, test, entry_point)
    or in MBPP's (task_id, text, code, test_list, test_setup_code). None: those that ship with decodery. Raises BadInput."""
    if path is None:
        with resources.as_file(resources.files("decodery.evaluation").joinpath("data/programs.jsonl")) as own:
            return load_tasks(own)
    found = read_records(path, _task, "task in HumanEval's or MBPP's form")
    if not found:
        raise BadInput(f"{path} holds no task.")
    return found


def _task(entry: dict[str, Any]) -> ProgramTask:
    name = str(entry["task_id"])
    if "canonical_solution" in entry:
        checked = f"{entry['test']}\n\ncheck({entry['entry_point']})"
        return ProgramTask(name, entry["prompt"], entry["canonical_solution"], checked)
    tests = [str(test) for test in entry["test_list"]]
    # As Fried et al. 2022 (InCoder) ask: the words of the task and its first test as the docstring of a file.
    prompt = f'"""\n{entry["text"]}\n{tests[0]}\n"""\n'
    solution = str(entry["code"]).replace("\r", "") + "\n"
    return ProgramTask(
        name, prompt, solution, "\n".join([str(entry.get("test_setup_code", "")), *tests]), FILE_STOPS, start=""
    )
