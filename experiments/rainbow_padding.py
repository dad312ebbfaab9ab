"""Rainbow padding against end tokens: answer length and accuracy against the canvas, and why.

python -m decodery.training.rainbow_padding --padding eos --folder work-eos --artifact arm-eos
python -m decodery.training.rainbow_padding --padding rainbow --folder work-rainbow --artifact arm-rainbow
python -m experiments run rainbow_padding --eos arm-eos --rainbow arm-rainbow

With --random a third arm, trained on pads without an order, is measured too. All decoding is greedy, one token a step, the
surest first.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from decodery.errors import BadInput
from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study
from decodery.evaluation.parallelbench.words import PADS, vocabulary
from decodery.models.masked_diffusion import RAINBOW_ENTRY
from decodery.training.networks import SmallLlama
from decodery.training.rainbow_padding import behaviour, cascade, first_step, pad_loss, questions, rows, without_order

LONG = 96
"""The canvas on which beliefs are measured; its second half lies behind every answer."""
SHOWN = (1, 2, 4)


@dataclass(frozen=True)
class Settings:
    eos: str = ""
    rainbow: str = ""
    random: str = ""
    canvases: tuple[int, ...] = (48, 64, 96, 128)
    blocks: tuple[int, ...] = (1, 16)
    samples: int = 60
    seed: int = 1


def networks(settings: Settings) -> dict[str, tuple[SmallLlama, list[int]]]:
    """The arms that are there, by name, with their pads. Raises BadInput where none is."""
    found = {}
    for name in ("eos", "rainbow", "random"):
        if folder := getattr(settings, name):
            config = json.loads((Path(folder) / "config.json").read_text("utf-8"))
            found[name] = SmallLlama.read(Path(folder)), config.get(RAINBOW_ENTRY, {}).get("pad_token_ids", [])
    if not found:
        raise BadInput("name the folder of at least one trained arm: --eos, --rainbow or --random.")
    return found


def canvases(settings: Settings) -> Study:
    asked = questions(settings.samples, settings.seed)

    def arm(name: str, network: SmallLlama, pads: list[int], canvas: int, blocks: int) -> Arm:
        def measure(place: int) -> Mapping[str, float]:
            row = behaviour(network, pads, asked[place : place + 1], canvas, blocks)
            return {"right": row.accuracy, "words": row.length, "early": row.early_padding, "no end": row.no_end}

        return Arm(f"{name}, canvas {canvas}, blocks {blocks}", measure)

    found = networks(settings)
    arms = [
        arm(name, *found[name], canvas, blocks)
        for name in found
        for blocks in settings.blocks
        for canvas in settings.canvases
    ]
    figures = (
        Figure("right", "right", form=".1%", share=True),
        Figure("words", "words", form=".1f"),
        Figure("padding in the first half of the steps", "early", form=".0%"),
        Figure("no end", "no end", form=".0%"),
    )
    claims = []
    if {"eos", "rainbow"} <= set(found):
        for canvas in settings.canvases:
            own, other = (f"{name}, canvas {canvas}, blocks {settings.blocks[0]}" for name in ("rainbow", "eos"))
            claims += [
                PublishedClaim("rainbow padding keeps the answer long", "words", own, other),
                PublishedClaim("and right", "right", own, other),
            ]
    return Study("Word problems of six steps.", list(range(len(asked))), arms, figures, claims, "padding")


def beliefs(settings: Settings) -> Study:
    asked = questions(settings.samples, settings.seed)[:16]

    def arm(name: str, network: SmallLlama, pads: list[int]) -> Arm:
        def measure(place: int) -> Mapping[str, float]:
            one = asked[place : place + 1]
            profile = first_step(network, pads, one, LONG)
            told = {key: sum(values[LONG // 2 :]) / (LONG // 2) for key, values in profile.items()}
            told |= {f"chain {k}": value for k, value in cascade(network, one, LONG).items()}
            if pads and place == 0:
                source = rows(settings.seed, [pad for pad in PADS if vocabulary()[pad] in pads])
                source = without_order(source, pads, settings.seed) if name == "random" else source
                told |= {f"pad loss {shown}": pad_loss(network, source, pads, shown=shown) for shown in SHOWN}
            return told

        return Arm(name, measure)

    arms = [arm(name, *found) for name, found in networks(settings).items()]
    names = list(dict.fromkeys(key for one in arms for key in one.measure(0)))
    return Study(
        f"First step of an empty canvas of {LONG}, mean of its second half; chain k: p(end at i, given end at "
        "i + k); pad loss n: "
        "nats of a hidden pad with n random ones shown.",
        list(range(len(asked))),
        arms,
        [Figure(name, name, form=".3f") for name in names],
        arms_are="padding",
    )


EXPERIMENT = Experiment(
    "rainbow_padding",
    "Rainbow padding against end tokens",
    "Rainbow Padding, 2025, arXiv 2510.03680",
    ("decodery.diffusion.padding", "decodery.training.rainbow_padding"),
    Settings(),
    {"canvases": canvases, "beliefs": beliefs},
)
