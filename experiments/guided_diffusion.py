"""FreeCache and guided diffusion: four corners, accepted length by gate, and how far frozen keys and values drift."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from math import log
from statistics import fmean
from typing import Any

import torch

from decodery.diffusion.freecache.method import FreeCacheDecoding
from decodery.diffusion.loop import Denoising
from decodery.engine.settings import Settings as Decoding
from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study, once_per_item
from decodery.models.forward import Attend, Forward
from decodery.testing.outputs import finished, new_request
from experiments.canvases import loaded

PROMPTS = (
    "Once upon a time", "One day, a little girl", "Tom had a red ball.", "The cat sat in the sun.", "It was a cold day.",
    "Lily and her mom went", "There was a big dog", "In the morning, Ben", "A small bird lived", "The boy found a box.",
)  # fmt: skip
GATES = ("deterministic", "topk", "relative", "threshold", "stochastic")


@dataclass(frozen=True)
class Settings:
    model: str = "diffusion-stories"
    guide: str = "stories-twin"
    prompts: int = 10
    tokens: int = 64
    block: int = 16
    chunk: int = 32
    seed: int = 0


def likelihoods(lm: Any, guide: Any, prompt: Sequence[int], tokens: Sequence[int]) -> tuple[float, float]:
    """Bits per token of a continuation: to the guide, and to the diffusion model from left to right on its canvas."""
    text = [*prompt, *tokens]
    [scores] = guide.run([Forward(guide.new_sequence(), text)])
    laws = scores.logits[len(prompt) - 1 : -1].log_softmax(-1)
    to_guide = -float(laws.gather(1, torch.tensor(tokens)[:, None]).mean()) / log(2)
    model, canvas, total = lm.diffusion, lm.diffusion.canvas, 0.0
    row = [*prompt, *[model.mask_token_id] * max(canvas, len(tokens))]
    for offset, token in enumerate(tokens):
        place = len(prompt) + offset
        ask = Forward(lm.network.new_sequence(), row, attend=Attend.FULL, logits=[place - model.shift])
        [answer] = lm.network.run([ask])
        law = answer.logits[0].clone()
        law[list(model.reserved)] = -float("inf")
        total += float(law.log_softmax(-1)[token])
        row[place] = token
    return to_guide, -total / len(tokens) / log(2)


def _study(
    settings: Settings, specs: Mapping[str, str], figures: Sequence[Figure], claims: Sequence[PublishedClaim]
) -> Study:
    lm = loaded(settings.model)
    owner = lm.companion(settings.guide)
    guide: Any = owner.network
    network: Any = lm.network
    prompts = list(range(min(settings.prompts, len(PROMPTS))))

    @once_per_item
    def greedy(place: int) -> list[int]:
        ids = lm.tokenize(PROMPTS[place])
        tokens: list[int] = owner.generate(ids, "autoregressive", max_new_tokens=settings.tokens).token_ids
        return tokens

    def arm(name: str, spec: str) -> Arm:
        alone = spec == "autoregressive"

        def measure(place: int) -> Mapping[str, float]:
            ids = lm.tokenize(PROMPTS[place])
            reply = (owner if alone else lm).generate(
                ids, spec, max_new_tokens=settings.tokens, seed=settings.seed + place
            )
            tokens, stats = reply.token_ids, reply.stats
            mine, theirs = stats.models.get(lm.network.name), stats.models.get(guide.name)
            bits_to_guide, bits = likelihoods(lm, guide, ids, tokens)
            bigrams = list(itertools.pairwise(tokens))
            work = sum(e.rows * n.parameters / 1e6 for e, n in ((mine, network), (theirs, guide)) if e)
            told = {
                "forwards": float(mine.forwards if mine else 0),
                "guide's forwards": float(theirs.forwards if theirs else 0),
                "work": work,
                "tokens": float(len(tokens)),
                "seconds": stats.seconds,
                "like the guide": fmean(a == b for a, b in zip(tokens, greedy(place), strict=False)),
                "bits to the guide": bits_to_guide,
                "bits": bits,
                "distinct": len(set(bigrams)) / len(bigrams) if bigrams else 1.0,
            }
            if accepted := stats.details.get("accepted"):
                told |= {"rounds": float(len(accepted)), "nothing": float(sum(n == 0 for n in accepted))}
            return told

        return Arm(name, measure)

    about = (
        f"Beginnings of stories, {settings.tokens} positions, float32. Work: rows times weights of both "
        "models, in millions."
    )
    return Study(about, prompts, [arm(*each) for each in specs.items()], figures, claims, lm=lm)


FIGURES = (
    Figure("forwards", "forwards", form=".1f"),
    Figure("guide's forwards", "guide's forwards", form=".1f"),
    Figure("work", "work", form=".0f"),
    Figure("like the guide", "like the guide", form=".0%"),
    Figure("bits to the guide", "bits to the guide"),
    Figure("bits to the denoiser", "bits"),
    Figure("distinct bigrams", "distinct", form=".0%"),
)
ROUNDS = (
    Figure("tokens/round", "tokens", per="rounds"),
    Figure("rounds that accept nothing", "nothing", per="rounds", form=".0%"),
)


def corners(settings: Settings) -> Study:
    shared = f"gen_length={settings.tokens}, block_length={settings.block}"
    guided = f"guided-diffusion({shared}, guide={settings.guide}, chunk={settings.chunk}"
    specs = {
        "masked-diffusion": f"masked-diffusion({shared})",
        "threshold": f"masked-diffusion({shared}, rule=threshold)",
        "left to right": f"masked-diffusion(gen_length={settings.tokens}, block_length=1)",
        "freecache": f"freecache({shared})",
        "freecache, at boundary": f"freecache({shared}, freeze=at_boundary)",
        "guided, no cache": f"{guided}, cache=none)",
        "guided": f"{guided})",
        "guided, gate topk": f"{guided}, gate=topk)",
        "the guide alone": "autoregressive",
    }
    plain = "masked-diffusion"
    speed = Figure("speed", "tokens", per="seconds", against=plain, unit="x")
    claims = [
        PublishedClaim("FreeCache computes fewer rows", "work", "freecache", plain, above=False),
        PublishedClaim("a guide saves forwards", "forwards", "guided", plain, above=False),
        PublishedClaim("guided text is likelier to the guide", "bits to the guide", "guided", plain, above=False),
    ]
    return _study(settings, specs, (*FIGURES, *ROUNDS, speed), claims)


def gates(settings: Settings) -> Study:
    shared = (
        f"gen_length={settings.tokens}, block_length={settings.block}, guide={settings.guide}, chunk={settings.chunk}"
    )
    specs = {gate: f"guided-diffusion({shared}, gate={gate})" for gate in GATES}
    return _study(settings, specs, (*ROUNDS, *FIGURES), ())


class Drifting(Denoising):
    """Beside each forward one without a cache: how far its laws are off."""

    told: list[dict[str, float]]
    newest: tuple[int, int]

    def score(self, start: int, end: int | None, offsets: Sequence[int] | None = None) -> Any:
        frozen = self.plan.cache.frozen  # type: ignore[attr-defined]
        laws = yield from super().score(start, end, offsets)
        total = range(len(self.canvas.tokens))
        scores = yield Forward(self.request.new_sequence(), list(self.canvas.tokens), attend=Attend.FULL, slots=total)
        fresh = scores.logits[[self.canvas.prompt + offset - self.model.shift for offset in laws.offsets]].double()
        fresh[:, self._banned] = -float("inf")
        theirs, mine = fresh.log_softmax(-1), laws.raw
        known = torch.isfinite(fresh)
        number = len(self.told)
        if frozen > self.newest[0]:
            self.newest = (frozen, number)
        off = (fresh - laws.scores.double()).masked_fill(~known, 0.0)
        divergence = (theirs.exp() * (theirs - mine)).masked_fill(~known, 0.0).sum(-1)
        self.told.append(
            {
                "since the prompt": float(number),
                "since the block": float(number - self.newest[1]),
                "largest": float(off.abs().max()),
                "kl": float(divergence.mean()),
                "same": float((mine.argmax(-1) == theirs.argmax(-1)).double().mean()),
            }
        )
        return laws


def drift(settings: Settings) -> Study:
    lm = loaded(settings.model)

    def rows(place: int, freeze: str) -> list[dict[str, float]]:
        method = (
            f"freecache(gen_length={settings.tokens}, block_length={settings.block}, freeze={freeze}, early_stop=never)"
        )
        given = Decoding(max_new_tokens=settings.tokens, seed=settings.seed)
        request, chosen = new_request(lm, method, lm.tokenize(PROMPTS[place]), given)
        assert isinstance(chosen, FreeCacheDecoding)
        run = Drifting(request, chosen.plan(request))
        run.told, run.newest = [], (0, 0)

        class Watched(FreeCacheDecoding):
            def decode(self, request: Any) -> Any:
                yield from run.run()

        finished(request, Watched())
        return run.told

    measured = {
        freeze: once_per_item(partial(rows, freeze=freeze)) for freeze in ("after_clean_forward", "at_boundary")
    }

    def arm(freeze: str, low: int, high: int) -> Arm:
        def measure(place: int) -> Mapping[str, float]:
            some = [row for row in measured[freeze](place) if low <= row["since the prompt"] < high]
            if not some:
                return {}
            told = {name: sum(row[name] for row in some) for name in ("kl", "same")}
            return told | {"forwards": float(len(some)), "largest": max(row["largest"] for row in some)}

        return Arm(f"{freeze}, forwards {low} to {high - 1}", measure)

    steps = [(low, low + settings.block) for low in range(0, settings.tokens, settings.block)]
    arms = [arm(freeze, *step) for freeze in measured for step in steps]
    figures = (
        Figure("KL to the law without a cache", "kl", per="forwards", form=".5f"),
        Figure("same arg-max", "same", per="forwards", form=".2%"),
        Figure("largest difference of a logit", "largest"),
    )
    last = arms[len(steps) - 1].name
    claims = (PublishedClaim("frozen rows stay near those of a fresh pass (arg-max)", "same arg-max", last, 0.9),)
    about = f"Stories of {settings.tokens} positions in blocks of {settings.block}: every forward beside one without a cache."
    return Study(about, list(range(min(settings.prompts, len(PROMPTS)))), arms, figures, claims, "frozen", lm)


EXPERIMENT = Experiment(
    "guided_diffusion",
    "FreeCache and guided diffusion",
    "FlashDLM, 2025, arXiv 2505.21467",
    (
        "decodery.diffusion.guided_diffusion",
        "decodery.diffusion.freecache.method",
        "decodery.diffusion.caches",
        "decodery.diffusion.loop",
    ),
    Settings(),
    {"corners": corners, "gates": gates, "drift": drift},
)
