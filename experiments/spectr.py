"""SpecTr: the joint law of sequences by sampling, and block efficiency against the number of drafts and at equal budget."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study
from decodery.sampling.noise import Noise, Stage
from decodery.speculative.draft import ROOT, Draft, Siblings
from decodery.speculative.verifiers.spectr import KSeq
from decodery.testing import TabularScorer, goodness_of_fit
from experiments.texts import NODES, TOKENS_PER_ROUND, Asked, decoding, loaded, questions_of

POSITION = 2
LENGTH = 2
"""Drafted tokens; with the bonus, three are emitted."""
LEAST = 0.001
"""Below this probability a law counts as refuted."""


@dataclass(frozen=True)
class Settings(Asked):
    temperature: float = 0.8
    tokens: int = 48
    draft: str = "ngram"
    length: int = 3
    samples: int = 4000
    repeats: int = 4


def drawn(law: Callable[..., Any], count: int, noise: Noise) -> tuple[Draft, list[tuple[int, ...]]]:
    """`count` sequences; equal prefixes share their nodes. Also the tokens on the way to the root and to each node."""
    tokens: list[int] = []
    parents: list[int] = []
    paths: list[tuple[int, ...]] = [()]
    draws: dict[int, list[int]] = {}
    q = {ROOT: law(())}
    ends = [ROOT] * count
    for depth in range(LENGTH):
        places: dict[tuple[int, int], int] = {}
        for number, end in enumerate(ends):
            token = noise.choose(q[end], POSITION + depth, Stage.DRAFT, number)
            if (end, token) not in places:
                places[end, token] = len(tokens)
                tokens.append(token)
                parents.append(end)
                paths.append((*paths[end + 1], token))
                q[len(tokens) - 1] = law(paths[-1])
            ends[number] = places[end, token]
            draws.setdefault(end, []).append(ends[number])
    return Draft(tokens, parents, q, Siblings.WITH_REPLACEMENT, draws=draws), paths


def law(settings: Settings) -> Study:
    scorer = TabularScorer(5, order=None, seed=4)
    target_law, draft_law = cache(scorer.law), cache(scorer.blurred(0.7).law)
    verifier = KSeq()

    def arm(count: int) -> Arm:
        def measure(seed: int) -> Mapping[str, float]:
            counts: Counter[tuple[int, ...]] = Counter()
            for sample in range(settings.samples):
                noise = Noise(seed, sample)
                draft, paths = drawn(draft_law, count, noise)
                logs = [target_law(path).log() for path in paths]
                verdict = verifier.verify(draft, logs, noise, POSITION)
                output: tuple[int, ...] = (*(draft.tokens[node] for node in verdict.path), verdict.next_token)
                while len(output) <= LENGTH:
                    place = POSITION + len(output)
                    output = (*output, noise.choose(target_law(output), place, Stage.TARGET, 1))
                counts[output] += 1
            fit = goodness_of_fit(counts, scorer.joint([], LENGTH + 1))
            return {
                "statistic": fit.statistic / fit.degrees,
                "variation": fit.total_variation,
                "fits": float(fit.p_value > LEAST),
            }

        return Arm(f"{count} drafts", measure)

    arms = [arm(count) for count in (1, 2, 4)]
    return Study(
        f"The first three tokens of a random model over five; an item is {settings.samples} samples of one "
        "seed. A law fits where "
        f"chi-square has a probability above {LEAST}.",
        [settings.seed + number for number in range(settings.repeats)],
        arms,
        (
            Figure("chi-square / degrees", "statistic"),
            Figure("total variation", "variation", form=".4f"),
            Figure("fits", "fits", form=".0%", share=True),
        ),
        [PublishedClaim("the output has the target's law", "fits", arm.name, every=True) for arm in arms],
        "SpecTr with",
    )


def _study(settings: Settings, specs: list[str], claims: list[PublishedClaim]) -> Study:
    lm = loaded(settings.model)
    about = (
        f"Answers of at most {settings.tokens} tokens at temperature {settings.temperature}; rounds are "
        "forwards of the target."
    )
    arms = decoding(lm, specs, settings, settings.temperature)
    return Study(about, questions_of(settings), arms, (TOKENS_PER_ROUND, NODES), claims, lm=lm)


def drafts(settings: Settings) -> Study:
    specs = [f"spectr(drafts={count}, length={settings.length}, draft={settings.draft})" for count in (1, 2, 4, 8)]
    more = zip(specs[1:], specs, strict=False)
    return _study(settings, specs, [PublishedClaim("more drafts accept more", "tokens/round", a, b) for a, b in more])


def budget(settings: Settings) -> Study:
    """About eight nodes each; SpecTr's equal prefixes are scored once, so it may use fewer."""
    given = f"draft={settings.draft}"
    recursive = f"recursive-speculative-decoding({given}, "
    specs = [
        f"draft-model(length=8, {given})",
        f"spectr(drafts=2, length=4, {given})",
        f"spectr(drafts=4, length=2, {given})",
        f"spectr(drafts=8, length=1, {given})",
        f"{recursive}tree=branching, branching=2x1x1x1)",
        f"{recursive}tree=branching, branching=4x1)",
        f"{recursive}width=4, length=2)",
        f"{recursive}width=2, length=4)",
    ]
    return _study(
        settings, specs, [PublishedClaim("several drafts beat one chain", "tokens/round", specs[2], specs[0])]
    )


EXPERIMENT = Experiment(
    "spectr",
    "SpecTr: its law, and tokens per forward of the target",
    "Sun et al., SpecTr, NeurIPS 2023, arXiv 2310.15141",
    (
        "decodery.speculative.spectr",
        "decodery.speculative.verifiers.spectr",
        "decodery.speculative.draft_laws.laws",
    ),
    Settings(),
    {"law": law, "drafts": drafts, "budget": budget},
)
