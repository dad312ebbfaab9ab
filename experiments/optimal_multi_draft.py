"""Multi-draft verification against its optimum: synthetic laws, and three ways of drawing the same tree on a real model.

On logged laws of a real model: decodery acceptance --rows 500
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study, once_per_item
from decodery.speculative.draft import Siblings
from decodery.speculative.transport import alpha_kseq, alpha_rrs_wr, alpha_star, rrs_wor_samples
from experiments.texts import NODES, TOKENS_PER_ROUND, Asked, decoding, loaded, questions_of

VERIFIERS = ("one draft", "optimum, with replacement", "optimum, without replacement", "K-SEQ",
             "recursive rejection, with replacement", "recursive rejection, without", "greedy, its optimum")  # fmt: skip
SPREADS = ((1.0, 1), (1.0, 2), (0.6, 1), (0.6, 2))
"""Temperature, and how far the target's logits are from the draft's."""


@dataclass(frozen=True)
class Settings(Asked):
    temperature: float = 0.8
    tokens: int = 48
    draft: str = "ngram"
    widths: str = "3x1x1"
    pairs: int = 12
    size: int = 1000
    drafts: int = 4


def synthetic(settings: Settings) -> Study:
    @once_per_item
    def accepted(seed: int) -> dict[str, dict[str, float]]:
        found: dict[str, dict[str, float]] = {name: {} for name in VERIFIERS}
        for temperature, spread in SPREADS:
            generator = np.random.Generator(np.random.Philox(key=seed))
            logits = generator.normal(0, 3, settings.size)
            wanted = logits + generator.normal(0, spread, settings.size)
            p, q = (np.exp(row / temperature) for row in (wanted, logits))
            count = settings.drafts
            rates = (
                alpha_star(p, q, 1, Siblings.WITH_REPLACEMENT),
                alpha_star(p, q, count, Siblings.WITH_REPLACEMENT),
                alpha_star(p, q, count, Siblings.WITHOUT_REPLACEMENT),
                alpha_kseq(p, q, count),
                alpha_rrs_wr(p, q, count),
                rrs_wor_samples(p, q, count, 64, seed)[:, -1].mean(),
                alpha_star(p, q, count, Siblings.GREEDY),
            )
            for name, rate in zip(VERIFIERS, rates, strict=True):
                found[name][f"T {temperature}, s {spread}"] = float(rate)
        return found

    def arm(name: str) -> Arm:
        def measure(seed: int) -> Mapping[str, float]:
            return accepted(seed)[name]

        return Arm(name, measure)

    columns = [f"T {temperature}, s {spread}" for temperature, spread in SPREADS]
    return Study(
        f"Probability that one of {settings.drafts} drafts is accepted; draft logits N(0, 3^2) over "
        f"{settings.size} tokens, target "
        "logits those plus N(0, s^2), both divided by the temperature T. An item is a pair of laws.",
        [settings.seed + number for number in range(settings.pairs)],
        [arm(name) for name in VERIFIERS],
        [Figure(column, column, form=".3f") for column in columns],
        (
            PublishedClaim(
                "greedy drafts accept more than recursive rejection", columns[2], VERIFIERS[6], VERIFIERS[5]
            ),
            PublishedClaim(
                "and sometimes more than any verifier of drawn drafts", columns[2], VERIFIERS[6], VERIFIERS[1]
            ),
            PublishedClaim(
                "no verifier reaches the optimum without replacement",
                columns[0],
                VERIFIERS[5],
                VERIFIERS[2],
                above=False,
            ),
            PublishedClaim("K-SEQ stays below the optimum", columns[0], VERIFIERS[3], VERIFIERS[1], above=False),
        ),
        "verifier",
    )


def trees(settings: Settings) -> Study:
    lm = loaded(settings.model)
    modes = ("greedy", "without-replacement", "with-replacement")
    specs = [f"optimal-multi-draft(widths={settings.widths}, mode={m}, draft={settings.draft})" for m in modes]
    return Study(
        f"Answers of at most {settings.tokens} tokens at temperature {settings.temperature}; rounds are "
        "forwards of the target.",
        questions_of(settings),
        decoding(lm, specs, settings, settings.temperature),
        (TOKENS_PER_ROUND, NODES),
        [PublishedClaim("greedy drafting accepts most", "tokens/round", specs[0], other) for other in specs[1:]],
        "tree",
        lm,
    )


EXPERIMENT = Experiment(
    "optimal_multi_draft",
    "Multi-draft verification against its optimum",
    "Hu et al., Towards Optimal Multi-draft Speculative Decoding, ICLR 2025, arXiv 2502.18779",
    (
        "decodery.speculative.transport",
        "decodery.speculative.verifiers",
        "decodery.speculative.optimal_multi_draft",
    ),
    Settings(),
    {"synthetic": synthetic, "trees": trees},
)
