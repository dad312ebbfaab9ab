"""AdaBlock against fixed blocks at the same threshold, on answers of several lines, and with delimiters that mean nothing.

The controls take as delimiters three tokens drawn from those of the answers. "at line ends" is the share of block ends that
stand at a line break; "triggered at line ends" the same of the blocks that a delimiter ended.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from decodery.diffusion.adablock import AdaBlock, DelimitedBlocks
from decodery.engine.events import Unmasked
from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study
from decodery.evaluation.parallelbench.tasks import Sample
from decodery.replies import Reply
from experiments.canvases import ACCURACY, BY_GROUP, FORWARDS, decoding, loaded, samples_of

DRAWN = 3
"""Tokens that a control takes as delimiters."""


@dataclass(frozen=True)
class Settings:
    samples: int = 40
    blocks: tuple[int, ...] = (4, 8, 16)
    caches: tuple[str, ...] = ("none", "dual")
    controls: int = 2
    canvas: int = 32
    threshold: float = 0.9
    delimiter_threshold: float = 0.3
    window: float = 0.25
    seed: int = 0


@dataclass(frozen=True)
class Watched(DelimitedBlocks):
    """Notes which blocks a delimiter has ended."""

    triggered: list[int] = field(default_factory=list)

    def delimiter(self, canvas: Any, start: int, laws: Any) -> int | None:
        found = super().delimiter(canvas, start, laws)
        if found is not None:
            self.triggered.append(found + 1)
        return found


@dataclass(frozen=True)
class WatchedAdaBlock(AdaBlock):
    """AdaBlock; the ends of triggered blocks of its last request."""

    def check(self) -> None:
        object.__setattr__(self, "triggered", [])

    def blocks(self, request: Any, length: int) -> Watched:
        plain = super().blocks(request, length)
        watched = Watched(plain.fallback, plain.delimiters, plain.threshold, plain.window, plain.base, plain.drawn)
        object.__setattr__(self, "triggered", watched.triggered)
        return watched


def ends_of(newline: int, reply: Reply, fired: list[int]) -> dict[str, float]:
    """Counts of a canvas's blocks and of where they end."""
    tokens: dict[int, int] = {}
    for event in reply.events:
        if isinstance(event, Unmasked):
            tokens.update(zip(event.offsets, event.tokens, strict=True))
    ends = reply.stats.block_ends
    told = {"ends": float(len(ends)), "begun": float(sum(b - a for a, b in itertools.pairwise([0, *ends])))}
    told["at line"] = float(sum(tokens.get(end - 1) == newline for end in ends))
    hit = [end for end in ends if end in fired]
    if hit:
        told |= {"fired": float(len(hit)), "fired at line": float(sum(tokens.get(end - 1) == newline for end in hit))}
    return told


def study(settings: Settings) -> Study:
    lm = loaded("diffusion-lists")
    samples = samples_of(settings.samples, ("arithmetic", "latin_square", "sudoku"))
    [newline] = lm.encode("\n")
    used = sorted({token for sample in samples for token in lm.encode(sample.answer)} - {newline})
    arms: list[Arm] = []
    claims: list[PublishedClaim] = []
    for cache, block in itertools.product(settings.caches, settings.blocks):
        place = f"{block}, {cache}"

        def adaptive(name: str, delimiters: str, block: int = block, cache: str = cache) -> Arm:
            method = WatchedAdaBlock(
                block_length=block,
                cache=cache,
                threshold=settings.threshold,
                delimiter_threshold=settings.delimiter_threshold,
                window=settings.window,
                delimiters=delimiters,
            )

            def tell(sample: Sample, reply: Reply) -> Mapping[str, float]:
                return ends_of(newline, reply, method.triggered)  # type: ignore[attr-defined]

            return decoding(lm, name, method, settings.canvas, tell=tell)

        fixed = f"masked-diffusion(rule=threshold, threshold={settings.threshold}, block_length={block}, cache={cache})"
        arms.append(decoding(lm, f"fixed {place}", fixed, settings.canvas, tell=lambda _, r: ends_of(newline, r, [])))
        arms.append(adaptive(f"adablock {place}", "newline"))
        for control in range(settings.controls):
            drawn = random.Random(settings.seed + control).sample(used, DRAWN)
            arms.append(adaptive(f"drawn delimiters {control}, {place}", "+".join(map(str, drawn))))
        claims.append(
            PublishedClaim(
                f"more accurate than fixed blocks of {place}", "accuracy", f"adablock {place}", f"fixed {place}"
            )
        )
    puzzles, sums = (next(figure for figure in BY_GROUP if figure.name == name) for name in ("puzzles", "arithmetic"))
    figures = (
        ACCURACY,
        FORWARDS,
        puzzles,
        sums,
        Figure("block length", "begun", per="ends", form=".1f"),
        Figure("at line ends", "at line", per="ends", form=".0%"),
        Figure("triggered at line ends", "fired at line", per="fired", form=".0%"),
    )
    about = f"Word problems, Latin squares and sudokus, canvas {settings.canvas}, greedy; arms: block length, cache."
    return Study(about, samples, arms, figures, claims, "blocks", lm)


EXPERIMENT = Experiment(
    "adablock",
    "AdaBlock against fixed blocks, and against delimiters that mean nothing",
    "Lu et al., AdaBlock-dLLM, 2025, arXiv 2509.26432",
    ("decodery.diffusion.adablock", "decodery.diffusion.loop", "decodery.diffusion.laws"),
    Settings(),
    {"blocks": study},
)
