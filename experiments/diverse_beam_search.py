"""Diverse beam search by strength against beam search of as many beams: how many n-grams differ, how near the best text comes.

An item is a paragraph of Python's documentation: its first half is the prompt, and the words of its second half are what the
texts are held against. Texts have as many tokens as that half, at most `tokens`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study
from decodery.evaluation.parallelbench.text_metrics import rouge_l
from decodery.evaluation.text_quality import distinct, oracle
from decodery.evaluation.typicality import typicality
from decodery.training.library_texts import paragraphs
from experiments.texts import loaded


@dataclass(frozen=True)
class Settings:
    model: str = "smollm2-135m"
    paragraphs: int = 60
    tokens: int = 24
    beams: int = 6
    groups: int = 3
    seed: int = 0
    strengths: tuple[float, ...] = (0.0, 0.2, 0.5, 1.0)


def strength(settings: Settings) -> Study:
    lm, beams = loaded(settings.model), settings.beams

    def arm(name: str, spec: str) -> Arm:
        def measure(paragraph: str) -> Mapping[str, float]:
            ids = lm.encode(paragraph)
            half = len(ids) // 2
            rest = lm.tokenizer.decode(ids[half : half + settings.tokens])
            count = max(4, min(settings.tokens, len(ids) - half))
            given: Any = lm.generate(ids[:half], spec, n=beams, max_new_tokens=count, ignore_eos=True)
            replies = given if isinstance(given, list) else [given]
            texts = [reply.token_ids for reply in replies]
            told = {f"distinct {size}": distinct(texts, size) for size in (1, 2, 3, 4)}
            told["first"] = rouge_l(replies[0].text, rest)
            told["best"] = oracle([reply.text for reply in replies], rest)
            # Strength is in nats, so it is weaker where the model is less sure.
            told["entropy"] = sum(typicality(lm, ids[:half], texts[0]).entropies) / len(texts[0])
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
        Figure("entropy", "entropy"),
    )
    return Study(
        f"Paragraphs of Python's documentation cut in half, {beams} texts of each in {settings.groups} groups. first, best: "
        "ROUGE-L of the first text and of the best one (the oracle's) against the second half. nats/token: under the model's "
        "own law; entropy: of that law along the first text, in nats.",
        list(paragraphs(settings.paragraphs)),
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
    (
        "decodery.search.diverse_beam_search",
        "decodery.search.diversity",
        "decodery.search.beams",
        "decodery.evaluation.text_quality",
    ),
    Settings(),
    {"strength": strength},
)
