"""Diverse beam search by strength against beam search of as many beams: how many n-grams differ, how near the best text comes.

An item is the first turn of a question: its first half is the prompt, and the words of its second half are what the texts are
held against. Texts have as many tokens as that half, at most `tokens`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study
from decodery.evaluation.questions import Question
from experiments.texts import Asked, loaded, questions_of


@dataclass(frozen=True)
class Settings(Asked):
    per_category: int = 9
    tokens: int = 24
    beams: int = 6
    groups: int = 3
    strengths: tuple[float, ...] = (0.0, 0.2, 0.5, 1.0)


def distinct(texts: Sequence[Sequence[int]], size: int) -> float:
    """Different n-grams over all n-grams of some texts; 0 where they are too short for one."""
    grams = [tuple(text[end - size : end]) for text in texts for end in range(size, len(text) + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def rouge_l(text: Sequence[str], reference: Sequence[str]) -> float:
    """F1 of the longest common subsequence of two lists of words."""
    above = [0] * (len(reference) + 1)
    for word in text:
        row = [0]
        for place, other in enumerate(reference):
            row.append(above[place] + 1 if word == other else max(above[place + 1], row[-1]))
        above = row
    return 2 * above[-1] / (len(text) + len(reference)) if above[-1] else 0.0


def strength(settings: Settings) -> Study:
    lm, beams = loaded(settings.model), settings.beams

    def arm(name: str, spec: str) -> Arm:
        def measure(question: Question) -> Mapping[str, float]:
            ids = lm.encode(question.turns[0])
            half = max(1, len(ids) // 2)
            rest = lm.tokenizer.decode(ids[half:]).split()
            count = max(4, min(settings.tokens, len(ids) - half))
            given: Any = lm.generate(ids[:half], spec, n=beams, max_new_tokens=count, ignore_eos=True)
            replies = given if isinstance(given, list) else [given]
            texts = [reply.token_ids for reply in replies]
            told = {f"distinct {size}": distinct(texts, size) for size in (1, 2, 3, 4)}
            told["first"] = rouge_l(replies[0].text.split(), rest)
            told["best"] = max(rouge_l(reply.text.split(), rest) for reply in replies)
            scored = lm.score(texts, prompt=ids[:half])
            told["nats"] = -sum(one.log_probability for one in scored)
            told["tokens"] = float(sum(map(len, texts)))
            return told

        return Arm(name, measure)

    plain = "beam search"
    arms = [arm(plain, f"beam-search(beams={beams}, length_penalty=0, early_stopping=never)")]
    names = [f"strength {value:g}" for value in settings.strengths]
    shared = f"beams={beams}, groups={settings.groups}"
    arms += [
        arm(name, f"diverse-beam-search({shared}, strength={value})")
        for name, value in zip(names, settings.strengths, strict=True)
    ]
    claims = [
        PublishedClaim(f"more strength, more different {size}-grams", f"distinct {size}", more, less)
        for size in (1, 2, 3, 4)
        for less, more in itertools.pairwise(names)
    ]
    claims += [PublishedClaim("the best of the texts is nearer than beam search's", "best", names[-1], plain)]
    figures = (
        *(Figure(f"distinct {size}", f"distinct {size}") for size in (1, 2, 3, 4)),
        Figure("first", "first", form=".3f"),
        Figure("best", "best", form=".3f"),
        Figure("nats/token", "nats", per="tokens"),
    )
    return Study(
        f"First turns cut in half, {beams} texts of each in {settings.groups} groups. first, best: ROUGE-L of the first text "
        "and of the best one against the second half. nats/token: under the model's own law.",
        questions_of(settings),
        arms,
        figures,
        claims,
        "search",
        lm,
    )


EXPERIMENT = Experiment(
    "diverse_beam_search",
    "Diverse beam search by strength, against beam search",
    "Vijayakumar et al., Diverse Beam Search, AAAI 2018, arXiv 1610.02424",
    ("decodery.search.diverse_beam_search", "decodery.search.diversity", "decodery.search.beams"),
    Settings(),
    {"strength": strength},
)
