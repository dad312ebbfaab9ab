"""A model's own answers to many prompts, which recipes of drafters, heads and tables learn from.

    decodery train answers --model smollm2-135m --folder answers

Batches of prompts are answered in turn greedily and at each of the temperatures, on the fast path, and each batch becomes a
small file of token ids. Interrupted, it goes on with the next batch. Other recipes read the folder (`--answers FOLDER`); what
they need beside the tokens, such as hidden rows, they compute again (`hidden_rows`), which is much faster than writing was.

Prompts are those of `decodery.training.prompts`, which need no data set, and those of files (`--files`): questions in
Spec-Bench's form, JSON lines with an `instruction`, a `question` or a `text`, or stories as plain text. What is kept to measure
on is never read: decodery's own questions, every second question of each category of a file in Spec-Bench's form, and files
whose names say that they are for tests.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from decodery.errors import BadInput
from decodery.evaluation.questions import OWN_SET, Question, load_questions
from decodery.models.forward import Forward, Rows
from decodery.training.checkpoints import same_recipe
from decodery.training.options import (
    Show,
    add_options,
    progress_bars,
    read_options,
    recipe_parser,
    refusing,
    silent,
)
from decodery.training.prompts import ASKS, TOPICS, varied_prompts

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel

KEPT_FOR_TESTS = re.compile(r"(?:^|[\W_])(tests?|valid|validation|dev|held[\W_]?out)(?:$|[\W_])")
"""A word in the name of a file whose prompts no recipe may see."""
LONGEST_PROMPT = 2000
"""Characters; longer prompts are left out."""
PARAGRAPH = (200, 600)
"""Fewest and most characters of a story's paragraph that is to be continued."""
ROWS_AT_ONCE = 1024
"""Rows of texts that are read in one pass."""


@dataclass(frozen=True)
class AnswerRecipe:
    """prompts, kinds, topics: of `varied_prompts`. files: of further prompts, and at most `per_file` of each. answers: how
    often each prompt is answered, at another temperature each time. temperatures: of the batches in turn; 0 is greedy.
    new_tokens: of an answer at most. batch: prompts that are answered at once. seed: of prompts and sampling.
    """

    prompts: int = 11000
    kinds: int = len(ASKS)
    topics: int = len(TOPICS)
    files: tuple[str, ...] = ()
    per_file: int = 2000
    answers: int = 2
    temperatures: tuple[float, ...] = (0.0, 0.8, 1.0)
    new_tokens: int = 160
    batch: int = 96
    seed: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.answers <= len(self.temperatures):
            raise BadInput(f"answers must be between 1 and the number of temperatures, {len(self.temperatures)}.")
        if self.kinds < 1 or self.topics < 2:
            raise BadInput("kinds must be at least 1, topics at least 2, since some prompts compare two.")
        if min(self.temperatures) < 0 or min(self.new_tokens, self.batch, self.per_file) < 1 or self.prompts < 0:
            raise BadInput("temperatures and prompts must be at least 0; new-tokens, batch and per-file at least 1.")


@dataclass(frozen=True)
class OwnAnswer:
    """Token ids of a prompt, as the model was given it, and of what the model wrote; at which temperature."""

    prompt: list[int]
    output: list[int]
    temperature: float


def all_prompts(recipe: AnswerRecipe) -> list[str]:
    """The recipe's prompts in the order in which they are answered. Raises BadInput where a file is kept for tests or holds
    none, OSError where it cannot be read."""
    prompts = varied_prompts(recipe.prompts, recipe.seed, recipe.kinds, recipe.topics) if recipe.prompts else []
    own = {turn for question in load_questions() for turn in question.turns}
    generator = np.random.Generator(np.random.Philox(key=recipe.seed))
    for file in recipe.files:
        found = [prompt for prompt in file_prompts(Path(file)) if prompt not in own and len(prompt) <= LONGEST_PROMPT]
        if not found:
            raise BadInput(f"{file} holds no prompts of at most {LONGEST_PROMPT} characters.")
        prompts += [found[place] for place in generator.permutation(len(found))[: recipe.per_file].tolist()]
    prompts = list(dict.fromkeys(prompts))
    return [prompts[place] for place in generator.permutation(len(prompts)).tolist()]


def file_prompts(path: Path) -> list[str]:
    """The prompts of a file that recipes may see: see the head of this module."""
    if kept := KEPT_FOR_TESTS.search(path.stem.lower()):
        raise BadInput(f"{path} is kept to measure on, as {kept[1]!r} in its name says; give a file for training.")
    if path.suffix != ".jsonl":
        shortest, longest = PARAGRAPH
        paragraphs = (" ".join(part.split()) for part in path.read_text("utf-8").split("\n\n"))
        return [f"Continue this story: {part}" for part in paragraphs if shortest <= len(part) <= longest]
    entries = [json.loads(line) for line in path.read_text("utf-8").splitlines() if line.strip()]
    if not all(isinstance(entry, dict) for entry in entries):
        raise BadInput(f"{path} must hold one JSON object a line.")
    if entries and "turns" in entries[0]:
        return [question.turns[0] for question in for_training(load_questions(path))]
    return [prompt for entry in entries if (prompt := _asked(entry))]


def for_training(questions: Sequence[Question]) -> list[Question]:
    """Every second question of each topic, from the first on; the others are kept to measure on. None of decodery's own."""
    return [question for question, number in _numbered(questions) if number % 2 == 0]


def kept_for_tests(questions: Sequence[Question]) -> list[Question]:
    """The questions that no recipe sees: those that `for_training` leaves out."""
    return [question for question, number in _numbered(questions) if number % 2]


def _numbered(questions: Sequence[Question]) -> Iterator[tuple[Question, int]]:
    """Each question with its number among those of its topic; decodery's own have the number 1, so that none is trained on."""
    seen: dict[str, int] = {}
    for question in questions:
        number = seen.get(question.topic, 0)
        seen[question.topic] = number + 1
        yield question, 1 if question.source == OWN_SET else number


def _asked(entry: dict[str, object]) -> str:
    """What a line of a data set asks: its instruction with the first instance's input, its question, or its text."""
    instruction, instances = entry.get("instruction"), entry.get("instances")
    if isinstance(instruction, str):
        first = instances[0].get("input") if isinstance(instances, list) and instances else entry.get("input")
        return f"{instruction}\n{first}" if isinstance(first, str) and first.strip() else instruction
    told = entry.get("question", entry.get("text"))
    return told if isinstance(told, str) else ""


def write_answers(lm: LanguageModel, recipe: AnswerRecipe, folder: Path, progress: Show = silent) -> list[OwnAnswer]:
    """Let a model answer the recipe's prompts; all answers, in the order of their batches.

    Each batch is a file of `folder`: prompt, output (all ids, one text after the other), prompt_lengths, output_lengths [texts]
    and temperature. Files that are there are not made again. Raises BadInput where they are another recipe's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    same_recipe(folder, {"model": lm.network.fingerprint(), **asdict(recipe)})
    prompts = all_prompts(recipe)
    starts = list(range(0, len(prompts), recipe.batch))
    many = len(recipe.temperatures)
    # The second time, a batch has the next temperature.
    order = [(start, place + turn) for turn in range(recipe.answers) for place, start in enumerate(starts)]
    for number, (start, place) in enumerate(order):
        progress("answers", number, len(order))
        path = folder / f"{number:05d}.npz"
        if path.exists():
            continue
        temperature = recipe.temperatures[place % many]
        asked = [question_ids(lm, prompt) for prompt in prompts[start : start + recipe.batch]]
        group = [ids for ids in asked if len(ids) + recipe.new_tokens <= lm.network.context]
        replies = lm.generate(
            group,
            "autoregressive",
            max_new_tokens=recipe.new_tokens,
            temperature=temperature,
            seed=[recipe.seed + number * recipe.batch + i for i in range(len(group))],
        )
        outputs = [list(reply.token_ids) for reply in replies]
        kind = np.uint16 if lm.network.vocabulary <= 1 << 16 else np.uint32
        scratch = path.with_suffix(".tmp.npz")
        np.savez(
            scratch,
            prompt=np.array([token for ids in group for token in ids], dtype=kind),
            prompt_lengths=np.array([len(ids) for ids in group], dtype=np.uint16),
            output=np.array([token for ids in outputs for token in ids], dtype=kind),
            output_lengths=np.array([len(ids) for ids in outputs], dtype=np.uint16),
            temperature=np.array(temperature),
        )
        scratch.rename(path)
    progress("answers", len(order), len(order))
    return read_answers(folder)


def read_answers(folder: Path, temperature: float | None = None) -> list[OwnAnswer]:
    """The answers of a folder that `write_answers` filled, wholly or in part. temperature: only those that were written at it.
    Raises BadInput where there are none."""
    answers = []
    for path in sorted(folder.glob("[0-9]*.npz")):
        if not path.stem.isdigit():  # broken off
            continue
        with np.load(path) as batch:
            at = float(batch["temperature"])
            if temperature is not None and at != temperature:
                continue
            pairs = zip(_parts(batch, "prompt"), _parts(batch, "output"), strict=True)
            answers += [OwnAnswer(prompt, output, at) for prompt, output in pairs]
    if not answers:
        which = "" if temperature is None else f" at temperature {temperature:g}"
        raise BadInput(f"{folder} holds no answers{which}; make them: decodery train answers --folder {folder}")
    return answers


def _parts(batch: dict[str, NDArray[np.uint16]], name: str) -> Iterator[list[int]]:
    ends = np.cumsum(batch[f"{name}_lengths"].astype(np.int64))
    for ids in np.split(batch[name], ends[:-1]):
        yield ids.tolist()


def question_ids(lm: LanguageModel, prompt: str) -> list[int]:
    """A prompt as a user's message where the model knows conversations, else as plain text."""
    if getattr(lm.tokenizer, "chat_template", None):
        return lm.tokenize([{"role": "user", "content": prompt}])
    return lm.tokenize(prompt)


def held_out_answers(
    lm: LanguageModel, new_tokens: int, questions: Sequence[Question] | None = None
) -> list[OwnAnswer]:
    """What a model answers, greedily, to questions that no recipe sees: by default decodery's own."""
    asked = load_questions() if questions is None else kept_for_tests(questions)
    prompts = [question_ids(lm, question.turns[0]) for question in asked]
    replies = lm.generate(prompts, "autoregressive", max_new_tokens=new_tokens)
    return [OwnAnswer(list(reply.prompt_token_ids), list(reply.token_ids), 0.0) for reply in replies]


def hidden_rows(
    lm: LanguageModel, answers: Sequence[OwnAnswer], taps: Sequence[int], progress: Show = silent
) -> dict[int, Tensor]:
    """The hidden rows [n, hidden] of each tap from which the tokens of the outputs were chosen, in the network's dtype: of each
    answer the prompt's last row, and all of the output but its last."""
    kept: dict[int, list[Tensor]] = {tap: [] for tap in taps}
    done = 0
    for group in in_groups(answers):
        asks = [
            Forward(lm.network.new_sequence(), read, taps=tuple(taps), logits=Rows.NONE)
            for read in ([*answer.prompt, *answer.output[:-1]] for answer in group)
        ]
        for answer, scores in zip(group, lm.network.run(asks), strict=True):
            for tap, rows in kept.items():
                rows.append(scores.hidden[tap][len(answer.prompt) - 1 :].clone())
        done += len(group)
        progress("hidden rows", done, len(answers))
    return {tap: torch.cat(rows) for tap, rows in kept.items()}


def in_groups(answers: Sequence[OwnAnswer], most: int = ROWS_AT_ONCE) -> Iterator[list[OwnAnswer]]:
    """The answers in order, as many at a time as have at most so many rows together, or one."""
    group: list[OwnAnswer] = []
    rows = 0
    for answer in answers:
        count = len(answer.prompt) + len(answer.output)
        if group and rows + count > most:
            yield group
            group, rows = [], 0
        group.append(answer)
        rows += count
    if group:
        yield group


@refusing
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line of the recipe."""
    from rich.console import Console

    from decodery import loading

    parser = recipe_parser("answers", __doc__, folder="where the answers go, so that a broken run goes on")
    parser.add_argument("--model", default="smollm2-135m")
    add_options(parser, AnswerRecipe())
    given = vars(parser.parse_args(arguments))
    recipe = read_options(AnswerRecipe(), given)
    all_prompts(recipe)  # which refuses files before the model is loaded
    with progress_bars() as show:
        answers = write_answers(loading.load(given["model"]), recipe, given["folder"], show)
    told = {"answers": len(answers), "tokens": sum(len(answer.output) for answer in answers)}
    Console().print_json(data=told)


if __name__ == "__main__":
    main()
