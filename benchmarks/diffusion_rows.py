"""What is measured of HEX, SchED, AdaBlock and guided diffusion: of each study the items, and the arms that decode one of them.

An arm gives the figures of one item, which whoever runs an experiment averages over items. All decoding is on CPU-sized models
that come with the package; HEX's collapse takes arms that `decodery.training.rainbow_padding` has trained.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import torch

import decodery
from decodery.diffusion.adablock import AdaBlock, DelimitedBlocks
from decodery.diffusion.canvas import Canvas
from decodery.diffusion.laws import Laws
from decodery.engine.request import Request
from decodery.evaluation.parallelbench.arithmetic import WordProblem
from decodery.evaluation.parallelbench.tasks import TASKS, Sample, make_samples, score
from decodery.language_model import LanguageModel
from decodery.models.forward import Forward
from decodery.training.rainbow_padding import is_right, questions

Figures = dict[str, float]
Arm = Callable[[Any], Figures]
LISTS, STORIES, GUIDE = "diffusion-lists", "diffusion-stories", "stories-twin"


@dataclass(frozen=True)
class Study:
    """items: of a number and a seed. arms: by name."""

    items: Callable[[int, int], list[Any]]
    arms: Callable[[], dict[str, Arm]]


@functools.cache
def model(name: str) -> LanguageModel:
    """A model, loaded once."""
    return decodery.load(name, dtype="float32")


def samples(tasks: Sequence[str]) -> Callable[[int, int], list[Sample]]:
    """Items that are samples of these tasks in turn."""

    def items(count: int, seed: int) -> list[Sample]:
        of_task = [make_samples(task, -(-count // len(tasks)), seed=seed) for task in tasks]
        return [sample for together in zip(*of_task, strict=True) for sample in together][:count]

    return items


def decodes(name: str, spec: str) -> Arm:
    """An arm that decodes a sample and counts forwards."""

    def arm(sample: Sample) -> Figures:
        reply = model(name).generate(sample.prompt, spec, seed=0)
        return {"right": float(score(sample, reply.text)), "forwards": float(reply.stats.forwards)}

    return arm


# HEX: texts that end before they have begun

CANVAS = 96
SEEDS = 5


def collapse(arm: str, block: int) -> Arm:
    """One block length with several seeds, on a word problem: which share of the runs collapses, is right, and how long."""
    spec = f"hex(gen_length={CANVAS}, block_lengths={block}, steps={CANVAS}, seeds={SEEDS}, temperature=0.9)"

    def run(problem: WordProblem) -> Figures:
        reply = model(arm).generate(f"{problem.question()} =", spec, seed=0)
        runs = reply.stats.details["runs"]
        return {
            "collapsed": fmean(run["collapsed"] for run in runs),
            "right": fmean(is_right(problem, run["text"]) for run in runs),
            "words": fmean(len(run["text"].split()) for run in runs),
            "vote_right": float(is_right(problem, reply.text)),
        }

    return run


def hex_collapse(arms: Sequence[str]) -> Study:
    """Arms of rainbow padding, by name or folder, each with blocks of 1/32 to all of the canvas."""
    blocks = [CANVAS // part for part in (32, 16, 8, 4, 2, 1)]
    found = {f"{arm}, blocks of {block}": collapse(arm, block) for arm in arms for block in blocks}
    return Study(questions, lambda: found)


# SchED: shapes of the threshold, and what they are compared with

SCHED_TASKS = ("copy", "sort", "shuffle", "replace_random", "sudoku", "paraphrase", "arithmetic")
"""Of each kind of task; tokens of the third and fourth depend on each other."""


def sched() -> dict[str, Arm]:
    """Published and lower levels by shape; constant margins; Prophet; without the gate; threshold decoding."""
    specs = {"no exit": "sched(threshold_high=inf, threshold_low=inf)"}
    for shape, low in itertools.product(("linear", "cosine", "exponential"), (2.5, 0.0)):
        specs[f"{shape}, 7.5 to {low:g}"] = f"sched(shape={shape}, threshold_low={low})"
    specs |= {f"slope {slope:g}": f"sched(shape=exponential, slope={slope})" for slope in (2.0, 16.0)}
    specs |= {f"constant {at:g}": f"sched(threshold_high={at}, threshold_low={at})" for at in (7.5, 5.0, 2.5)}
    specs["linear, no gate"] = "sched(stability_gate=False)"
    specs["linear, ends left out"] = "sched(ends=left_out)"
    specs["prophet"] = "sched(shape=prophet)"
    specs |= {f"threshold {at:g}": f"masked-diffusion(rule=threshold, threshold={at})" for at in (0.7, 0.8, 0.9, 0.95)}
    return {name: decodes(LISTS, spec) for name, spec in specs.items()}


# AdaBlock: delimiters, how sure they must be, and delimiters that mean nothing

BLOCK = 8
LINES = ("arithmetic", "latin_square", "sudoku")
"""Tasks whose answers have several lines."""
CONTROLS, TOKENS = 4, 3


@dataclass(frozen=True)
class Watched(DelimitedBlocks):
    """Notes which blocks a delimiter has ended."""

    triggered: list[int] = field(default_factory=list)

    def delimiter(self, canvas: Canvas, start: int, laws: Laws) -> int | None:
        found = super().delimiter(canvas, start, laws)
        if found is not None:
            self.triggered.append(found + 1)
        return found


def in_blocks(method: AdaBlock) -> Arm:
    """An arm that tells of the blocks, too: their mean length, and how many of their ends are line ends, of all and of those
    that a delimiter has brought about (left out where there is none)."""
    kept: list[Watched] = []

    class Watching(AdaBlock):
        def blocks(self, request: Request, length: int) -> Watched:
            kept.append(Watched(**vars(super().blocks(request, length))))
            return kept[-1]

    watching = Watching(**{item.name: getattr(method, item.name) for item in method.parameters()})

    def arm(sample: Sample) -> Figures:
        lm = model(LISTS)
        reply = lm.generate(sample.prompt, watching, seed=0)
        [newline] = lm.encode("\n")
        ends, triggered = list(reply.stats.block_ends), kept.pop().triggered
        lines = {offset + 1 for offset, token in enumerate(reply.token_ids) if token == newline}
        found = {
            "right": float(score(sample, reply.text)),
            "forwards": float(reply.stats.forwards),
            "block_length": fmean(end - start for start, end in itertools.pairwise([0, *ends])),
            "line_ends": fmean(end in lines for end in ends),
            "triggered": len(triggered) / len(ends),
        }
        return found | ({"triggered_line_ends": fmean(end in lines for end in triggered)} if triggered else {})

    return arm


def adablock() -> dict[str, Arm]:
    """Fixed blocks; line breaks by how sure they must be; the same with random tokens in their place."""
    lm = model(LISTS)
    plain = AdaBlock(block_length=BLOCK)
    arms = {"fixed": in_blocks(dataclasses.replace(plain, delimiter_threshold=math.inf))}
    for sure in (0.3, 0.5, 0.7):
        arms[f"newline, {sure:g}"] = in_blocks(dataclasses.replace(plain, delimiter_threshold=sure))
    answers = [lm.encode(sample.answer) for task in LINES for sample in make_samples(task, 50, seed=0)]
    used = sorted({token for answer in answers for token in answer} - set(lm.encode("\n")))
    for seed in range(CONTROLS):
        drawn = "+".join(map(str, random.Random(seed).sample(used, TOKENS)))
        arms[f"drawn tokens {seed}"] = in_blocks(dataclasses.replace(plain, delimiters=drawn))
    return arms


# Guided diffusion: four corners, and the gates

PROMPTS = (
    "Once upon a time", "One day, a little girl", "Tom had a red ball.", "The cat sat in the sun.", "It was a cold day.",
    "Lily and her mom went", "There was a big dog", "In the morning, Ben", "A small bird lived", "The boy found a box.",
)  # fmt: skip
LENGTH = 64
GATES = ("deterministic", "topk", "relative", "threshold", "stochastic")


def bits(tokens: Sequence[int], prompt: Sequence[int]) -> float:
    """Bits per token of a continuation, to the guide."""
    guide = model(GUIDE).network
    [scores] = guide.run([Forward(guide.new_sequence(), [*prompt, *tokens])])
    laws = scores.logits[len(prompt) - 1 : -1].log_softmax(-1)
    return float(laws.gather(1, torch.tensor(list(tokens))[:, None]).mean()) / -math.log(2)


def tells_a_story(name: str, spec: str) -> Arm:
    """An arm that continues a text: forwards of both models, multiplications by their weights in millions (rows times
    parameters), tokens per round, bits per token to the guide, and the share of distinct pairs of words."""

    def arm(prompt: str) -> Figures:
        lm, guide = model(name), model(GUIDE)
        ids = lm.tokenize(prompt)
        reply = lm.generate(ids, spec, max_new_tokens=LENGTH, seed=0)
        used: dict[str, Any] = {network.name: network for network in (lm.network, guide.network)}
        counts = {owner: entry for owner, entry in reply.stats.models.items() if owner in used}
        pairs = list(itertools.pairwise(reply.token_ids))
        found = {
            "forwards": float(sum(entry.forwards for owner, entry in counts.items() if owner != guide.network.name)),
            "guide_forwards": float(sum(c.forwards for owner, c in counts.items() if owner == guide.network.name)),
            "work": sum(entry.rows * used[owner].parameters / 1e6 for owner, entry in counts.items()),
            "tokens": float(len(reply.token_ids)),
            "bits_to_guide": bits(reply.token_ids, ids),
            "distinct_pairs": len(set(pairs)) / len(pairs) if pairs else 1.0,
        }
        accepted = reply.stats.details.get("accepted")
        return found | ({"tokens_per_round": len(reply.token_ids) / len(accepted)} if accepted else {})

    return arm


def guided() -> dict[str, Arm]:
    """The diffusion model alone, with FreeCache, guided by every gate, and the guide alone."""
    canvas = f"gen_length={LENGTH}, block_length=16"
    specs = {
        "diffusion alone": f"masked-diffusion({canvas})",
        "threshold 0.9": f"masked-diffusion({canvas}, rule=threshold)",
        "from left to right": f"masked-diffusion(gen_length={LENGTH}, block_length=1)",
        "freecache": f"freecache({canvas})",
        "guided, no cache": f"guided-diffusion({canvas}, guide={GUIDE}, cache=none)",
        **{f"guided, {gate}": f"guided-diffusion({canvas}, guide={GUIDE}, gate={gate})" for gate in GATES},
    }
    arms = {name: tells_a_story(STORIES, spec) for name, spec in specs.items()}
    return arms | {"the guide alone": tells_a_story(GUIDE, "autoregressive")}


STUDIES = {
    "sched": Study(samples(SCHED_TASKS), sched),
    "adablock": Study(samples(LINES), adablock),
    "guided-diffusion": Study(lambda count, seed: list(PROMPTS[:count]), guided),
}
"""By method. HEX's takes the arms that were trained: `hex_collapse`."""
assert set(SCHED_TASKS) | set(LINES) <= set(TASKS)
