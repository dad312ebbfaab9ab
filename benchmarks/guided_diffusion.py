"""FreeCache and guided diffusion: four corners, accepted length by gate, and how far frozen keys and values drift.

python benchmarks/guided_diffusion.py corners     # diffusion alone, FreeCache, guided, and the guide alone
python benchmarks/guided_diffusion.py gates       # tokens per round by gate
python benchmarks/guided_diffusion.py drift       # logits with FreeCache against those without a cache, by step
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

import decodery
from decodery.diffusion.freecache.method import FreeCacheDecoding
from decodery.diffusion.loop import Denoising
from decodery.engine.settings import Settings
from decodery.models.forward import Attend, Forward
from decodery.testing.outputs import finished, new_request

PROMPTS = (
    "Once upon a time", "One day, a little girl", "Tom had a red ball.", "The cat sat in the sun.", "It was a cold day.",
    "Lily and her mom went", "There was a big dog", "In the morning, Ben", "A small bird lived", "The boy found a box.",
)  # fmt: skip


def likelihoods(lm: Any, guide: Any, prompt: Sequence[int], tokens: Sequence[int]) -> tuple[float, float]:
    """Bits per token of a continuation: to the guide, and to the diffusion model from left to right on its canvas."""
    text = [*prompt, *tokens]
    [scores] = guide.run([Forward(guide.new_sequence(), text)])
    laws = scores.logits[len(prompt) - 1 : -1].log_softmax(-1)
    to_guide = float(laws.gather(1, torch.tensor(tokens)[:, None]).mean()) / -0.6931471805599453
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
    return to_guide, total / len(tokens) / -0.6931471805599453


def cost(reply: Any, lm: Any, guide: Any) -> dict[str, float]:
    """Forwards of both models, and multiplications by weights (rows times parameters) of both together, in millions."""
    models = reply.stats.models
    mine, theirs = models.get(lm.network.name), models.get(guide.name)
    work = sum(
        entry.rows * network.parameters / 1e6 for entry, network in ((mine, lm.network), (theirs, guide)) if entry
    )
    return {
        "forwards": mine.forwards if mine else 0,
        "guide_forwards": theirs.forwards if theirs else 0,
        "work": work,
    }


def measured(lm: Any, owner: Any, spec: str, given: argparse.Namespace) -> dict[str, Any]:
    """Means over all prompts. owner: the guide as a model of its own, which decodes where `spec` is autoregressive."""
    alone, rows = spec.startswith("autoregressive"), []
    guide = owner.network
    for place, prompt in enumerate(PROMPTS[: given.prompts]):
        ids = lm.tokenize(prompt)
        model = owner if alone else lm
        reply = model.generate(ids, spec, max_new_tokens=given.tokens, seed=place)
        greedy = owner.generate(ids, "autoregressive", max_new_tokens=given.tokens)
        tokens = reply.token_ids
        to_guide, to_model = likelihoods(lm, guide, ids, tokens) if given.bits else (float("nan"), float("nan"))
        bigrams = list(itertools.pairwise(tokens))
        accepted = reply.stats.details.get("accepted")
        rows.append(
            {
                **cost(reply, lm, guide),
                "tokens": len(tokens),
                "seconds": reply.stats.seconds,
                "like_guide": fmean(a == b for a, b in zip(tokens, greedy.token_ids, strict=False)),
                "bits_to_guide": to_guide,
                "bits_to_diffusion": to_model,
                "distinct_bigrams": len(set(bigrams)) / len(bigrams) if bigrams else 1.0,
                "tokens_per_round": len(tokens) / len(accepted) if accepted else None,
                "rounds_without": fmean(a == 0 for a in accepted) if accepted else None,
                "text": reply.text,
            }
        )
    told: dict[str, Any] = {"method": f"{owner.name}: {spec}" if alone else spec}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name != "text" and None not in values:
            told[name] = fmean(values)
    told["texts"] = [row["text"] for row in rows]
    return told


def show(rows: Sequence[dict[str, Any]]) -> None:
    """All rows as one table."""
    names = [name for name in rows[0] if name not in ("method", "texts")]
    names += [name for name in ("tokens_per_round", "rounds_without") if name not in names]
    width = max(len(row["method"]) for row in rows)
    print(f"{'method':{width}} " + " ".join(f"{name:>17}" for name in names))
    for row in rows:
        cells = (f"{row[name]:17.3f}" if name in row else f"{'-':>17}" for name in names)
        print(f"{row['method']:{width}} " + " ".join(cells))
    for row in rows:
        print(f"\n{row['method']}: {row['texts'][0]!r}")


class Drifting(Denoising):
    """Beside each forward one without a cache: how far its laws are off."""

    rows: list[dict[str, float]]

    def score(self, start: int, end: int | None, offsets: Sequence[int] | None = None) -> Any:
        frozen = self.plan.cache.frozen  # type: ignore[attr-defined]
        laws = yield from super().score(start, end, offsets)
        total = range(len(self.canvas.tokens))
        scores = yield Forward(self.request.new_sequence(), list(self.canvas.tokens), attend=Attend.FULL, slots=total)
        fresh = scores.logits[[self.canvas.prompt + offset - self.model.shift for offset in laws.offsets]].double()
        fresh[:, self._banned] = -float("inf")
        theirs, mine = fresh.log_softmax(-1), laws.raw
        known = torch.isfinite(fresh)
        number = len(self.rows)
        if frozen > self.newest[0]:
            self.newest = (frozen, number)
        off = (fresh - laws.scores.double()).masked_fill(~known, 0.0)
        divergence = (theirs.exp() * (theirs - mine)).masked_fill(~known, 0.0).sum(-1)
        same = (mine.argmax(-1) == theirs.argmax(-1)).double().mean()
        self.rows.append(
            {
                "steps_since_prompt": number,
                "steps_since_block": number - self.newest[1],
                "largest": float(off.abs().max()),
                "kl": float(divergence.mean()),
                "same_argmax": float(same),
            }
        )
        return laws


def drift(lm: Any, given: argparse.Namespace, freeze: str) -> list[dict[str, float]]:
    """One row per forward, of all prompts."""
    rows: list[dict[str, float]] = []
    method = f"freecache(gen_length={given.tokens}, block_length={given.block}, freeze={freeze}, early_stop=never)"
    for prompt in PROMPTS[: given.prompts]:
        settings = Settings(max_new_tokens=given.tokens, seed=0)
        request, chosen = new_request(lm, method, lm.tokenize(prompt), settings)
        assert isinstance(chosen, FreeCacheDecoding)
        run = Drifting(request, chosen.plan(request))
        run.rows, run.newest = [], (0, 0)  # type: ignore[attr-defined]

        class Watched(FreeCacheDecoding):
            def decode(self, request: Any) -> Any:
                yield from run.run()  # noqa: B023

        finished(request, Watched())
        rows += run.rows
    return rows


def show_drift(rows: Sequence[dict[str, float]], by: str, width: int) -> None:
    """Means by age, `width` steps together."""
    print(f"\n{by.replace('_', ' '):22} {'forwards':>9} {'largest difference':>19} {'KL':>10} {'same argmax':>12}")
    for low in range(0, int(max(row[by] for row in rows)) + 1, width):
        some = [row for row in rows if low <= row[by] < low + width]
        if some:
            print(
                f"{f'{low} to {low + width - 1}':22} {len(some):9} {max(row['largest'] for row in some):19.4f} "
                f"{fmean(row['kl'] for row in some):10.6f} {fmean(row['same_argmax'] for row in some):12.4f}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description="FreeCache and guided diffusion.")
    parser.add_argument("study", choices=("corners", "gates", "drift"))
    parser.add_argument("--model", default="diffusion-stories")
    parser.add_argument("--guide", default="stories-twin")
    parser.add_argument("--prompts", type=int, default=10, help=f"at most {len(PROMPTS)}")
    parser.add_argument("--tokens", type=int, default=64, help="positions of the canvas")
    parser.add_argument("--block", type=int, default=16)
    parser.add_argument("--chunk", type=int, default=32)
    parser.add_argument("--no-bits", dest="bits", action="store_false", help="without likelihoods, which take longest")
    parser.add_argument("--json", type=Path, help="also write the numbers here")
    given = parser.parse_args()
    lm = decodery.load(given.model, dtype="float32")
    shared = f"gen_length={given.tokens}, block_length={given.block}"
    guided = f"guided-diffusion({shared}, guide={given.guide}, chunk={given.chunk}"
    results: Any
    if given.study == "drift":
        results = {freeze: drift(lm, given, freeze) for freeze in ("after_clean_forward", "at_boundary")}
        for freeze, rows in results.items():
            print(f"\nfreeze={freeze}")
            show_drift(rows, "steps_since_prompt", given.block)
            show_drift(rows, "steps_since_block", max(1, given.block // 4))
    else:
        owner = lm.companion(given.guide)
        specs = (
            [f"{guided}, gate={gate})" for gate in ("deterministic", "topk", "relative", "threshold", "stochastic")]
            if given.study == "gates"
            else [
                f"masked-diffusion({shared})",
                f"masked-diffusion({shared}, rule=threshold)",
                f"masked-diffusion(gen_length={given.tokens}, block_length=1)",
                f"freecache({shared})",
                f"freecache({shared}, freeze=at_boundary)",
                f"{guided}, cache=none)",
                f"{guided})",
                f"{guided}, gate=topk)",
                "autoregressive",
            ]
        )
        results = [measured(lm, owner, spec, given) for spec in specs]
        show(results)
    if given.json is not None:
        given.json.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
