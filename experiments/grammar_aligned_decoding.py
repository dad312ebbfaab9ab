"""Grammar-aligned decoding: distances to the model's own law among the valid texts beside cost, and likelihoods of draws."""

from __future__ import annotations

import math
import re
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from decodery.constraints.grammar_aligned_decoding import Choice
from decodery.constraints.grammatical_trie import Node
from decodery.engine.settings import Settings as RequestSettings
from decodery.engine.spelling import WrittenTokens
from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study
from decodery.evaluation.weights_check import LANGUAGE, LENGTH, dead_end_model, masses
from decodery.language_model import LanguageModel
from decodery.models.forward import Forward, Rows
from decodery.testing import total_variation
from experiments.awrs import SCHEMA, SUBJECTS
from experiments.texts import loaded

NAME = "grammar-aligned-decoding"
FRUITS = (
    "Name a fruit. Answer with one word only.",
    (
        "Apple",
        "Banana",
        "Orange",
        "Pear",
        "A pear",
        "A fig",
        "Apricot",
        "Avocado",
        "Grape",
        "Grapefruit",
        "Pineapple",
        "Pine",
    ),
)
EARTH = (
    "Is the Earth flat? Answer with one or two words.",
    (
        "Yes",
        "No",
        "Not at all",
        "Never",
        "Of course",
        "Of course not",
        "Yes, mostly",
        "No way",
        "It is round",
        "It depends",
    ),
)
LEAST, LEAST_MASKED = 1e-9, 1e-6
"""Beginnings of less mass, under the model and under masking, are not followed when a language is enumerated."""


@dataclass(frozen=True)
class Settings:
    model: str = "smollm2-135m"
    runs: int = 6
    texts: int = 200
    seeds: int = 3
    draws: int = 40
    tokens: int = 40
    seed: int = 0


def language(settings: Settings) -> Study:
    exact = masses()
    mass = math.fsum(exact.values())
    aligned = {text: own / mass for text, own in exact.items()}
    count = settings.texts

    def measured(texts: Sequence[str], stats: Sequence[Any], begun: float) -> Mapping[str, float]:
        shares = {text: number / len(texts) for text, number in Counter(texts).items()}
        return {
            "variation": total_variation(shares, aligned),
            "rows": sum(one.rows for one in stats) / len(texts),
            "milliseconds": 1000 * (time.perf_counter() - begun) / len(texts),
        }

    def many(spec: str, seed: int) -> Mapping[str, float]:
        """All texts of one request. Of methods that decide them together the statistics are shared."""
        begun = time.perf_counter()
        replies: Any = dead_end_model().generate([0], spec, n=count, seed=seed, **asked)
        shared = {id(reply.stats): reply.stats for reply in replies}
        return measured([said(reply) for reply in replies], list(shared.values()), begun)

    def single(spec: str, seed: int) -> Mapping[str, float]:
        """A text of each of many requests."""
        lm, begun = dead_end_model(), time.perf_counter()
        replies: list[Any] = [lm.generate([0], spec, seed=seed * count + place, **asked) for place in range(count)]
        return measured([said(reply) for reply in replies], [reply.stats for reply in replies], begun)

    def rejected(seed: int) -> Mapping[str, float]:
        """Plain texts, of which the valid ones stay."""
        lm, begun = dead_end_model(), time.perf_counter()
        valid: list[str] = []
        stats: list[Any] = []
        free = {**asked, "structured_outputs": None}
        while len(valid) < count:
            replies: Any = lm.generate([0], "autoregressive", n=count, seed=seed * 1000 + len(stats), **free)
            for reply in replies:
                stats.append(reply.stats)
                valid += [said(reply)] * (re.fullmatch(LANGUAGE["regex"], said(reply)) is not None)
                if len(valid) == count:
                    break
        return measured(valid, stats, begun)

    asked: Any = {"structured_outputs": LANGUAGE, "temperature": 1.0, "max_new_tokens": LENGTH}
    arms = [
        Arm("masking", lambda seed: many("autoregressive", seed)),
        Arm("whole texts rejected", rejected),
        Arm("awrs, 8 weighed", lambda seed: single("awrs(particles=8, ess_threshold=0)", seed)),
        Arm("awrs, 8 particles", lambda seed: single("awrs(particles=8)", seed)),
        Arm("awrs, 32 particles", lambda seed: single("awrs(particles=32)", seed)),
        Arm("this, the first", lambda seed: many(f"{NAME}(keep=request)", seed)),
        Arm("this, after 100", lambda seed: many(f"{NAME}(keep=request, warmup=100)", seed)),
        Arm("this, after 1000", lambda seed: many(f"{NAME}(keep=request, warmup=1000)", seed)),
    ]
    return Study(
        f"Texts of five letters, of which those that begin with a have one valid end that is hardly ever written; an item is "
        f"{count} texts as a user gets them, whose shares are compared with the exact law. Whole texts that are rejected leave "
        "exactly that law, so their distance is what chance makes of it. Rows are those of the model, of all that led to the "
        "texts, and so is the time.",
        [settings.seed + number for number in range(settings.runs)],
        arms,
        (
            Figure("total variation", "variation", form=".3f"),
            Figure("rows a text", "rows"),
            Figure("milliseconds a text", "milliseconds", form=".1f"),
        ),
        [
            PublishedClaim("draws align", "total variation", "this, after 1000", "masking", False),
            PublishedClaim("more draws are nearer", "total variation", "this, after 1000", "this, the first", False),
        ],
    )


def said(reply: Any) -> str:
    text: str = reply.text.removesuffix("c")
    return text


@dataclass(frozen=True)
class Enumerated:
    """A language over a model. laws: what may follow each beginning. ends: tokens that end a text. mass: of all texts.
    aligned: the model's law among them, by tokens."""

    laws: Mapping[tuple[int, ...], Choice]
    ends: frozenset[int]
    mass: float
    aligned: Mapping[tuple[int, ...], float]

    def law(self, root: Node | None) -> Mapping[tuple[int, ...], float]:
        """Of the next draw, where a trie has learned so much; without one, of masking."""
        found: dict[tuple[int, ...], float] = {}
        waiting: list[tuple[tuple[int, ...], Node | None, float]] = [((), root, 1.0)]
        while waiting:
            tokens, node, mass = waiting.pop()
            ids, shares = self.laws[tokens]
            children = (node.children if node is not None else None) or {}
            weights = shares * [children[token].bound if token in children else 1.0 for token in ids.tolist()]
            for token, weight in zip(ids.tolist(), (mass * weights / weights.sum()).tolist(), strict=True):
                longer = (*tokens, token)
                if token in self.ends:
                    found[longer] = weight
                elif longer in self.laws and weight > 0:
                    waiting.append((longer, children.get(token), weight))
        return found


@cache
def enumerated(lm: LanguageModel, question: str, texts: tuple[str, ...]) -> Enumerated:
    """Every way to write these texts as an answer, in all tokens."""
    given = {"structured_outputs": {"choice": list(texts)}}
    constraint = RequestSettings.of(given, lm.network.vocabulary).spelled(WrittenTokens(lm)).structured_outputs.unforced
    laws: dict[tuple[int, ...], Choice] = {}
    found: dict[tuple[int, ...], float] = {}
    sequence = lm.network.new_sequence()
    prompt = lm.tokenize([{"role": "user", "content": question}])
    row = lm.network.run([Forward(sequence, prompt, logits=Rows.LAST)])[0].logits[0]
    waiting: list[tuple[tuple[int, ...], float, float, Any, Any]] = [((), 1.0, 1.0, sequence, row)]
    while waiting:
        tokens, mass, masked, before, scores = waiting.pop()
        follows, ends = constraint.allowed(tokens)
        follows[list(lm.stop_ids)] = ends
        law = scores.double().softmax(-1).numpy()
        ids = np.flatnonzero(follows.numpy())
        laws[tokens] = ids, law[ids]
        for token, share in zip(ids.tolist(), law[ids].tolist(), strict=True):
            longer = (*tokens, token)
            if token in lm.stop_ids:
                found[longer] = mass * share
            elif mass * share > LEAST or masked * share / law[ids].sum() > LEAST_MASKED:
                own = before.fork()
                row = lm.network.run([Forward(own, [token], logits=Rows.LAST)])[0].logits[0]
                waiting.append((longer, mass * share, masked * share / law[ids].sum(), own, row))
    whole = math.fsum(found.values())
    return Enumerated(laws, frozenset(lm.stop_ids), whole, {key: one / whole for key, one in found.items()})


def answers(settings: Settings) -> Study:
    lm = loaded(settings.model)

    def arm(draws: int) -> Arm:
        def measure(item: tuple[int, tuple[str, tuple[str, ...]]]) -> Mapping[str, float]:
            seed, (question, texts) = item
            language = enumerated(lm, question, texts)
            lm.forget()
            if draws == 0:
                return {"variation": total_variation(language.law(None), language.aligned)}
            begun = time.perf_counter()
            replies: Any = lm.chat(
                [{"role": "user", "content": question}],
                method=NAME,
                n=draws,
                seed=seed,
                temperature=1.0,
                max_new_tokens=16,
                structured_outputs={"choice": list(texts)},
            )
            taken = time.perf_counter() - begun
            [reply, *_] = replies
            trie = lm.memory["default", NAME].latest
            return {
                "variation": total_variation(language.law(trie.root), language.aligned),
                "bound": reply.stats.details["mass_bound"] / language.mass,
                "rows": reply.stats.rows / draws,
                "milliseconds": 1000 * taken / draws,
            }

        return Arm("masking" if draws == 0 else f"after {draws} draws", measure)

    arms = [arm(draws) for draws in (0, 10, 100, 1000)]
    return Study(
        f"Answers to two questions ({FRUITS[0]} {EARTH[0]}), each one of ten or twelve texts in all the tokens that write "
        "them. The exact law is enumerated, and that of the next draw read from the trie; an item is a question and a seed.",
        [(settings.seed + seed, task) for task in (FRUITS, EARTH) for seed in range(settings.seeds)],
        arms,
        (
            Figure("total variation", "variation", form=".3f"),
            Figure("bound over mass", "bound"),
            Figure("rows a draw", "rows"),
            Figure("milliseconds a draw", "milliseconds", form=".1f"),
        ),
        [
            PublishedClaim("draws align", "total variation", "after 1000 draws", "masking", False),
            PublishedClaim("more draws are nearer", "total variation", "after 100 draws", "after 10 draws", False),
            PublishedClaim("more draws are nearer", "total variation", "after 1000 draws", "after 100 draws", False),
        ],
        "draws",
        lm=lm,
    )


def likelihood(settings: Settings) -> Study:
    lm = loaded(settings.model)

    def arm(name: str, spec: str, last: float) -> Arm:
        def measure(subject: str) -> Mapping[str, float]:
            lm.forget()
            said = f"Describe {subject} as a JSON object with the keys name and number."
            bounds: list[float] = []
            replies: list[Any] = []
            for part in range(4):
                given: Any = lm.chat(
                    [{"role": "user", "content": said}],
                    method=spec,
                    n=settings.draws // 4,
                    seed=settings.seed + part,
                    temperature=1.0,
                    max_new_tokens=settings.tokens,
                    structured_outputs={"json": SCHEMA},
                    logprobs=0,
                )
                replies += given
                details = given[0].stats.details
                bounds += [details["mass_bound_before"], details["mass_bound"]]
            judged = replies[int(len(replies) * (1 - last)) :]
            return {
                "likelihood": float(np.mean([sum(one.raw for one in reply.logprobs) for reply in judged])),
                "truncated": float(np.mean([reply.finish_reason == "length" for reply in judged])),
                "start": bounds[1],
                "end": bounds[-1],
                "falls": float(bounds == sorted(bounds, reverse=True)),
            }

        return Arm(name, measure)

    first, learned = "masking", f"the last quarter of {settings.draws} draws"
    return Study(
        f"A JSON object of two keys, about {len(SUBJECTS)} subjects, at temperature 1 and {settings.tokens} tokens at most; "
        "the log probability of a text is the model's own, in nats.",
        SUBJECTS,
        [arm(first, f"{NAME}(nodes=1, at_once=10)", 1.0), arm(learned, f"{NAME}(at_once=5)", 0.25)],
        (
            Figure("log probability", "likelihood", form=".1f"),
            Figure("cut off", "truncated", form=".0%"),
            Figure("bound after the first quarter", "start", form=".2g"),
            Figure("bound at the end", "end", form=".2g"),
            Figure("never rises", "falls", share=True, form=".0%"),
        ),
        [
            PublishedClaim("what is drawn becomes likelier", "log probability", learned, first),
            PublishedClaim("the bound falls", "never rises", learned, every=True),
        ],
        "draws",
        lm=lm,
    )


EXPERIMENT = Experiment(
    "grammar_aligned_decoding",
    "Grammar-aligned decoding: laws and likelihoods",
    "Park et al., Grammar-Aligned Decoding, NeurIPS 2024, arXiv 2405.21047",
    ("experiments.grammar_aligned_decoding", "decodery.constraints", "decodery.sampling.structured"),
    Settings(),
    {"language": language, "answers": answers, "likelihood": likelihood},
)
