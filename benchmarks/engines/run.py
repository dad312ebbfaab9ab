"""decodery against transformers, vLLM, llama.cpp and OpenVINO GenAI: one command, one model file, one machine, one run.

    python benchmarks/engines/run.py --json race.json --markdown race.md

The tables of the documents are made of what it leaves in results/engines.json: python -m experiments tables.

What an engine needs is made first, below --folder, and kept. An engine that cannot be made, loaded or run is named with the
reason and left out. See README.md beside this file for the rules and for the settings of each engine.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from decodery.evaluation.experiment_files import here
from decodery.evaluation.experiment_files import write as keep
from decodery.evaluation.provenance import processor
from decodery.evaluation.questions import load_questions
from decodery.models.cache import home
from engines.entrants import ENGINES, PLAIN, Plan, entrants, plans
from engines.environments import TORCH, SetupFailed, environments, prepare
from engines.model_files import ModelFiles, find, prepare_gguf, prepare_openvino
from engines.race import Race, groups_of
from engines.report import Report
from engines.worker import EngineFailed, Worker

ROOT = Path(__file__).parents[2]
SPARE = 64
"""Tokens of context beyond prompt and answer, for what is drafted past the end."""


def arguments() -> argparse.ArgumentParser:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m", help="a bundled model or a .gguf file")
    parser.add_argument("--prompts", type=Path, metavar="FILE", help="as Spec-Bench's question.jsonl; default: own set")
    parser.add_argument("--questions", type=int, default=2, metavar="N", help="per category (2); first turns")
    parser.add_argument("--new-tokens", type=int, default=128, metavar="N", help="of each answer (128)")
    parser.add_argument("--batch", default="1,8", metavar="SIZES", help="prompts decoded together (1,8)")
    parser.add_argument("--engines", default=",".join(ENGINES), metavar="NAMES", help="separated by commas")
    parser.add_argument("--rounds", type=int, default=3, help="how often everything is measured (3)")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)), help="of every engine (all cores)")
    parser.add_argument(
        "--stop-at-end", action="store_true", help="end tokens end an answer; default: all answers have all tokens"
    )
    parser.add_argument("--folder", type=Path, default=None, help="environments and models ($DECODERY_HOME/engines)")
    parser.add_argument("--torch", default=TORCH, metavar="REQUIREMENT", help=f"its CPU build ({TORCH})")
    parser.add_argument("--setup-only", action="store_true", help="make environments and files, and stop")
    parser.add_argument("--json", type=Path, metavar="FILE", help="everything; written anew after each round")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="the tables")
    return parser


def main() -> None:
    """Set up, race, report."""
    given = arguments().parse_args()
    engines = [name.strip() for name in given.engines.split(",") if name.strip()]
    if unknown := set(engines) - set(ENGINES):
        sys.exit(f"unknown engines: {', '.join(sorted(unknown))}; known are {', '.join(ENGINES)}.")
    if "decodery" not in engines:
        engines.insert(0, "decodery")  # all others are compared with it
    batches = sorted({int(size) for size in given.batch.split(",")})
    folder: Path = (given.folder or home() / "engines").expanduser().absolute()
    failures: dict[str, str] = {}
    files = find(given.model, folder)
    set_up(engines, files, folder, given.torch, failures)
    if given.setup_only:
        for name, reason in failures.items():
            print(f"left out: {name}: {reason}")
        sys.exit(1 if failures else 0)
    prompts, chosen, ends = tokenized(files, given.prompts, given.questions, max(batches))
    groups = groups_of(prompts, chosen, batches)
    longest = max(len(prompt) for group in groups for prompt in group.prompts)
    context = -(-(longest + given.new_tokens + SPARE) // 256) * 256
    wanted = [engine for engine in engines if engine not in failures]
    with ExitStack() as stack:
        workers, loaded = start(
            plans(files, folder, wanted, threads=given.threads, context=context, batches=batches),
            folder,
            stack,
            failures,
        )
        everybody = [entrant for entrant in entrants() if entrant.worker in workers]
        race = Race(list(everybody), workers, groups, given.new_tokens, ends if given.stop_at_end else ())
        report = Report(everybody, groups, race.records, [], loaded, failures)
        report.told = told(given, files, groups, context)
        memory = stack.enter_context(
            Plan("bandwidth", "decodery", "bandwidth_worker.py", {}, {"OMP_NUM_THREADS": str(given.threads)}).start(
                folder
            )
        )
        memory.load({"threads": given.threads})

        def after_round(number: int) -> None:
            report.bandwidth.append(memory.measure())
            report.records = race.records
            report.failures = failures | race.failures
            report.told["rounds"] = number + 1
            write(report, given)

        race.warm_up(say)
        report.bandwidth.append(memory.measure())
        race.run(given.rounds, say, after_round)
    print(report.markdown())


def say(text: str) -> None:
    """Progress, with the time of day."""
    print(f"{datetime.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


def set_up(engines: Sequence[str], files: ModelFiles, folder: Path, torch: str, failures: dict[str, str]) -> None:
    """Make environments and files; what fails is noted with its reason."""
    known = environments(torch)
    for engine in engines:
        try:
            if engine in known:
                prepare(known[engine], folder)
            if engine == "llamacpp":
                prepare_gguf(files)
            if engine == "openvino":
                prepare_openvino(files, folder)
        except SetupFailed as error:
            failures[engine] = str(error)
            say(f"left out: {engine}: {error}")


def tokenized(
    files: ModelFiles, path: Path | None, questions: int, most: int
) -> tuple[list[tuple[str, list[int]]], int, list[int]]:
    """Prompts as (category, token ids) in the order of `groups_of`, how many of them are asked alone, and the end tokens.

    First come `questions` of every category, then the others of the set, category by category in turns. Only first turns:
    later ones depend on answers.
    """
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(files.checkpoint)
    by_category: dict[str, list[str]] = {}
    for question in load_questions(path):
        by_category.setdefault(question.category, []).append(question.turns[0])
    deepest = max(len(turns) for turns in by_category.values())
    ranked = [
        (category, turns[depth], depth)
        for depth in range(deepest)
        for category, turns in by_category.items()
        if depth < len(turns)
    ]
    chosen = sum(depth < questions for _, _, depth in ranked)
    enough = -(-chosen // most) * most
    found = []
    for category, text, _ in ranked[:enough]:
        if getattr(tokenizer, "chat_template", None):
            text = tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
            )
            ids = tokenizer.encode(text, add_special_tokens=False)
        else:
            ids = tokenizer.encode(text)
        found.append((category, list(ids)))
    end = tokenizer.eos_token_id
    return found, chosen, [] if end is None else [int(end)]


def start(
    planned: Sequence[Plan], folder: Path, stack: ExitStack, failures: dict[str, str]
) -> tuple[dict[str, Worker], dict[str, dict[str, Any]]]:
    """Start and load the workers, one after the other; those that fail are closed and noted."""
    workers: dict[str, Worker] = {}
    loaded: dict[str, dict[str, Any]] = {}
    for plan in planned:
        say(f"loading {plan.name}")
        worker = plan.start(folder)
        try:
            loaded[plan.name] = worker.load(plan.settings)
        except EngineFailed as error:
            worker.close()
            if plan.name == "decodery":
                raise
            failures[plan.name] = str(error)
            say(f"left out: {error}")
            continue
        stack.callback(worker.close)
        workers[plan.name] = worker
    return workers, loaded


def told(given: argparse.Namespace, files: ModelFiles, groups: Sequence[Any], context: int) -> dict[str, Any]:
    """Where the numbers come from."""
    counts = ", ".join(
        f"{sum(group.batch == size for group in groups)} x {size}"
        for size in dict.fromkeys(group.batch for group in groups)
    )
    name = "decodery's own questions" if given.prompts is None else given.prompts.name
    return {
        "model": f"{files.name} ({files.gguf.name})",
        "hardware": processor(),
        "threads": given.threads,
        "prompts": f"{counts} prompts of {name}, first turns",
        "new_tokens": given.new_tokens,
        "rule": "end tokens end an answer" if given.stop_at_end else "end tokens ignored by all",
        "rounds": 0,
        "context": context,
        "plain": PLAIN,
        "made": {**here(ROOT, [str(Path(__file__).parent)]), "model": None, "modules": {}},
        "load": os.getloadavg()[0],
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
    }


def write(report: Report, given: argparse.Namespace) -> None:
    """Write what there is, so that an interrupted race leaves its rounds behind."""
    if given.json is not None:
        given.json.write_text(json.dumps(report.as_dict(), indent=1) + "\n", "utf-8")
    if report.records:
        tables = report.tables()
        keep(ROOT, "engines", "Other engines on the same prompts", "the engines' own documentation", tables)
    if given.markdown is not None:
        given.markdown.write_text(report.markdown(), "utf-8")


if __name__ == "__main__":
    main()
