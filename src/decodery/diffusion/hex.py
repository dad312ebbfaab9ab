"""HEX: the same prompt under several block schedules and seeds, and the answer that most of them give.

Hidden semi-autoregressive experts, 2025, arXiv 2510.05040: a masked-diffusion model has met every pattern of masks in training,
so each order of filling is an expert of its own, and a vote among them does better than the order that looks surest.
"""

from __future__ import annotations

import hashlib
import re
import struct
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from decodery.diffusion.base import Claim, StepwiseMethod
from decodery.diffusion.blocks import FixedBlocks
from decodery.diffusion.loop import Denoising
from decodery.diffusion.masked_diffusion import MaskedDiffusionDecoding
from decodery.diffusion.padding import truncate
from decodery.diffusion.unmasking.base import Asking, CanvasStep, Commit, Rule
from decodery.diffusion.unmasking.llada import Quota
from decodery.engine.asking import together
from decodery.engine.method import Decoding, Exactness, parameter
from decodery.errors import BadParameter, Refused
from decodery.search import answers
from decodery.search.votes import Key, count, decided

if TYPE_CHECKING:
    from decodery.diffusion.laws import Laws
    from decodery.engine.request import Request
    from decodery.models.scorer import Scorer

ORDERS = {"low_confidence": "confidence", "random": "random", "margin": "margin", "entropy": "entropy"}
"""Which offsets of a block come first -> the rank of LLaDA's rule."""
HALVINGS = (32, 16, 8, 4, 2)
"""Published blocks of 8 to 128 on a canvas of 256, as parts of the canvas."""
TEMPERATURE = 0.9
"""Published temperature of the runs."""


def run_seed(seed: int, key: Key) -> int:
    """The seed of one run, out of the request's: masked-diffusion with this seed and block length gives the same canvas."""
    digest = hashlib.blake2b(struct.pack("<Qqq", seed & 0xFFFFFFFFFFFFFFFF, *key), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


class Weighed(Rule):
    """Another rule, and the log probability of what it has filled, each token by the model's law at its step."""

    def __init__(self, rule: Rule):
        self.rule = rule
        self.log_probability: dict[int, float] = {}
        """Of each filled offset."""

    def choose(self, laws: Laws, step: CanvasStep) -> Commit:
        commit = self.rule.choose(laws, step)
        assert isinstance(commit, Commit)
        places = [laws.offsets.index(offset) for offset in commit.offsets]
        if places:
            values = laws.at(sorted(places)).confidence([t for _, t in sorted(zip(places, commit.tokens, strict=True))])
            self.log_probability.update(zip(sorted(commit.offsets), values.tolist(), strict=True))
        return commit


@dataclass(frozen=True)
class Run:
    """One finished run. answer: None where it abstains. likelihood: log probability of the tokens up to the first that ends
    the text. collapsed: the text ends before it has begun. forwards: those of guidance count too."""

    denoising: Denoising
    text: str
    answer: str | None
    likelihood: float
    collapsed: bool
    forwards: int


@dataclass(frozen=True)
class HiddenExperts(StepwiseMethod):
    """Decode the prompt with several block lengths and several seeds of each, and give the answer that most runs agree on."""

    name: ClassVar[str] = "hex"
    title: ClassVar[str] = "HEX: hidden semi-autoregressive experts"
    paper: ClassVar[str] = (
        "Test-time scaling in diffusion LLMs via hidden semi-autoregressive experts, 2025, arXiv 2510.05040"
    )
    exactness: ClassVar[Exactness] = Exactness.QUALITY_CHANGING

    block_length: int | None = parameter(
        None, "one block length for all runs, in place of block_lengths", low=1, auto="those of block_lengths"
    )
    steps: int | None = parameter(
        None,
        "steps for the whole canvas",
        low=1,
        auto="one per two positions, where all blocks are even, otherwise one per position",
    )
    block_lengths: int | str = parameter(
        "auto",
        "lengths joined by x, as in 8x16x32; auto: 1/32, 1/16, … 1/2 of the canvas",
        only={"block_length": None},
    )
    seeds: int = parameter(5, "runs of each block length", low=1)
    temperature: float | None = parameter(None, "of the runs of a greedy request", low=0.0, auto="0.9")
    order: str = parameter("low_confidence", "which positions of a block come first", choices=tuple(ORDERS))
    answer: str = parameter("text", "what is read out of a text and voted on", choices=answers.KINDS)
    choice: str = parameter(
        "vote", "who wins: the most frequent answer, or the likeliest run", choices=("vote", "likelihood")
    )
    stop_when_decided: bool = parameter(
        False, "skip runs that cannot change the winning answer any more", only={"choice": "vote"}
    )
    at_once: int = parameter(5, "runs that share a pass", low=1)

    def lengths(self, length: int) -> tuple[int, ...]:
        """The block lengths on a canvas of `length`, ascending. Raises BadParameter."""
        if self.block_length is not None:
            return (min(self.block_length, length),)
        if self.block_lengths == "auto":
            return tuple(length // part for part in HALVINGS if length % part == 0) or (length,)
        given = str(self.block_lengths)
        if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*)*", given):
            raise BadParameter(f"{self.name}: block_lengths are numbers joined by x, not {given!r}.")
        return tuple(sorted({int(part) for part in given.split("x")}))

    def planned(self, length: int) -> int:
        if self.steps is not None:
            return self.steps
        return length // 2 if all(block % 2 == 0 for block in self.lengths(length)) else length

    def check_steps(self, length: int) -> None:
        steps = self.planned(length)
        for block in self.lengths(length):
            if length % block or steps % (length // block):
                raise BadParameter(
                    f"{self.name}: {steps} steps do not divide into a canvas of {length} with blocks of {block}; "
                    "the block length must divide the canvas, and the number of blocks the steps."
                )

    def unmasking(self, request: Request) -> Rule:
        return Quota(ORDERS[self.order])

    def runs(self, length: int) -> list[Key]:
        """All runs, in the order in which ties are broken."""
        return [(block, seed) for block in self.lengths(length) for seed in range(self.seeds)]

    def claims(self) -> tuple[Claim, ...]:
        one = self.varied(block_length=1, block_lengths="auto", steps=None, seeds=1, temperature=0.0)
        plain = MaskedDiffusionDecoding(**{**self.canvas_parameters(), "block_length": 1})
        return (Claim("one block length with one seed is plain decoding", one, plain),)

    def admit(self, request: Request) -> None:
        super().admit(request)
        if self.temperature is not None and not request.law.greedy:
            raise Refused(
                f"{self.name}: temperature={self.temperature:g} is that of the runs of a greedy request, and this one has a "
                f"temperature of {request.settings.temperature:g} of its own; give one of the two."
            )

    def caches(self, request: Request) -> list[tuple[Scorer, int]]:
        # Of a finished run only the canvas is kept.
        return super().caches(request) * min(self.at_once, len(self.runs(self.length(request))))

    def decode(self, request: Request) -> Decoding:
        length = self.length(request)
        keys = self.runs(length)
        finished: dict[Key, Run] = {}
        for start in range(0, len(keys), self.at_once):
            if self.stop_when_decided and decided(_answers(finished), keys[start:]):
                break
            wave = keys[start : start + self.at_once]
            finished.update(zip(wave, (yield from together([self._run(request, key) for key in wave])), strict=True))
        self._tell(request, finished, len(keys))
        chosen = finished[self.decide(finished)].denoising
        if chosen.padding is not None:
            request.statistics.details["padding"] = chosen.padding
        request.conclude([(chosen.output, count(_answers(finished)).consensus)])

    def decide(self, finished: dict[Key, Run]) -> Key:
        """Whose text is the reply."""
        if self.choice == "likelihood":
            return max(sorted(finished), key=lambda key: finished[key].likelihood)
        return count(_answers(finished)).run

    def _run(self, request: Request, key: Key) -> Asking[Run]:
        rule = Weighed(self.unmasking(request))
        plan = replace(self.plan(request), rule=rule, blocks=FixedBlocks(key[0]))
        law, temperature = request.law, TEMPERATURE if self.temperature is None else self.temperature
        if law.greedy and temperature > 0:
            law = request.law_with(temperature=temperature)
        assert request.settings.seed is not None
        chance = request.chance(run_seed(request.settings.seed, key))
        denoising = Denoising(request, plan, chance, request.output.fork(), law)
        yield from denoising.run()
        forwards = denoising.forwards * len(denoising.sequences)
        denoising.sequences = ()  # only the canvas is looked at from here on
        return self._judged(denoising, rule, forwards)

    def _judged(self, denoising: Denoising, rule: Weighed, forwards: int) -> Run:
        request, canvas = denoising.request, denoising.canvas
        filled = canvas.answer[: canvas.complete_until()]
        reading = truncate(filled, request.stop_ids, denoising.model.filling_token_ids)
        text = request.host.tokenizer.decode(reading.tokens, skip_special_tokens=True)
        for stop in request.settings.stop:
            text = text.split(stop)[0]
        likelihood = sum(rule.log_probability[offset] for offset in reading.output)
        return Run(denoising, text, answers.parse(text, self.answer), likelihood, not reading.tokens, forwards)

    def _tell(self, request: Request, finished: dict[Key, Run], planned: int) -> None:
        vote = count(_answers(finished))
        request.statistics.details.update(
            answer=vote.winner,
            votes=vote.histogram,
            consensus=vote.consensus,
            abstained=sum(run.answer is None for run in finished.values()),
            runs_planned=planned,
            runs=[
                {
                    "block": key[0],
                    "seed": key[1],
                    "run_seed": run_seed(request.settings.seed or 0, key),
                    "text": run.text,
                    "answer": run.answer,
                    "likelihood": run.likelihood,
                    "collapsed": run.collapsed,
                    "forwards": run.forwards,
                }
                for key, run in sorted(finished.items())
            ],
        )


def _answers(finished: dict[Key, Run]) -> dict[Key, str | None]:
    return {key: run.answer for key, run in finished.items()}
