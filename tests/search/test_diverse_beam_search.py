"""Diverse beam search: a reference written out over explicit laws, and what its paper promises."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import pytest
import torch
from tiny_models import byte_level_tokenizer, make_model, random_ids

import decodery
from decodery.engine.registry import method as as_method
from decodery.errors import BadParameter, Refused
from decodery.language_model import LanguageModel
from decodery.replies import Reply
from decodery.testing import TabularScorer, scripted_language_model

PROMPT = [1, 2]
END = 5
Text = tuple[int, ...]
Alike = Callable[[Text, list[Text]], float]
"""A text with its next token, and what another group has kept at that step: how alike they are."""


@dataclass
class Group:
    """Texts with their penalised and plain sums."""

    live: list[tuple[Text, float, float]] = field(default_factory=lambda: [((), 0.0, 0.0)])
    done: list[tuple[Text, float, float]] = field(default_factory=list)
    kept: list[Text] = field(default_factory=list)
    over: bool = False


def reference(
    scorer: TabularScorer,
    prompt: list[int],
    width: int,
    strengths: Sequence[float],
    steps: int,
    alike: Alike,
    everybody: bool = False,
) -> list[Group]:
    """The algorithm as it is written, with plain lists. everybody: the penalty is symmetric, which it must not be."""
    groups = [Group() for _ in range(len(strengths) + 1)]
    for step in range(1, steps + 1):
        before = [list(group.kept) for group in groups]
        for number, group in enumerate(groups):
            group.kept = []
            if group.over:
                continue
            others = [(strengths[h], groups[h].kept) for h in range(number)]
            if everybody:
                others = [
                    (strengths[0], [t for k in (before[h],) for t in k]) for h in range(len(groups)) if h != number
                ]
            candidates = []
            for text, total, plain in group.live:
                law = scorer.law([*prompt, *text]).log()
                for token in range(scorer.vocabulary):
                    longer, value = (*text, token), float(law[token])
                    penalty = sum(s * alike(longer, kept) for s, kept in others if kept)
                    candidates.append((longer, total + value - penalty, plain + value))
            candidates.sort(key=lambda c: -c[1])
            live = []
            for rank, candidate in enumerate(candidates[: 2 * width]):
                if candidate[0][-1] == END or step == steps:
                    if rank < width:
                        group.done.append(candidate)
                        group.kept.append(candidate[0])
                elif len(live) < width:
                    live.append(candidate)
                    group.kept.append(candidate[0])
            group.live = live
            group.done = sorted(group.done, key=lambda c: -c[1])[:width]
            full = len(group.done) >= width
            group.over = not live or (full and group.done[-1][1] >= live[0][1])
    return groups


def hamming(text: Text, kept: list[Text]) -> float:
    return sum(other[-1] == text[-1] for other in kept)


def ngram(size: int) -> Alike:
    def alike(text: Text, kept: list[Text]) -> float:
        own = [*PROMPT, *text][-size:]
        whole = [[*PROMPT, *other] for other in kept]
        ends = range(len(PROMPT) + 1, len(PROMPT) + len(text) + 1)
        return sum(tokens[max(0, end - size) : end] == own for tokens in whole for end in ends)

    return alike


def cumulative(text: Text, kept: list[Text]) -> float:
    return math.exp(-sum(a != b for other in kept for a, b in zip(text, other, strict=True)) / 5.0)


def vectors(scorer: TabularScorer) -> torch.Tensor:
    generator = torch.Generator().manual_seed(4)
    return torch.randn(scorer.vocabulary, 3, generator=generator)


def cosine(rows: torch.Tensor, one: Sequence[int], other: Sequence[int]) -> float:
    means = rows[list(one)].mean(dim=0), rows[list(other)].mean(dim=0)
    return float(torch.cosine_similarity(*means, dim=0))


def tabular(seed: int = 0, vocabulary: int = 6, ends: bool = True) -> tuple[LanguageModel, TabularScorer]:
    scorer = TabularScorer(vocabulary, order=None, seed=seed)
    rows = vectors(scorer)
    scorer.embed = lambda tokens: rows[tokens]  # type: ignore[method-assign]
    return scripted_language_model(scorer, stop_ids=(END,) if ends else ()), scorer


def told(replies: Reply | list[Reply]) -> list[dict[str, Any]]:
    first = replies[0] if isinstance(replies, list) else replies
    texts: list[dict[str, Any]] = first.stats.details["texts"]
    return texts


def by_group(texts: list[dict[str, Any]]) -> dict[int, list[Text]]:
    return {g: [tuple(t["token_ids"]) for t in texts if t["group"] == g] for g in {t["group"] for t in texts}}


def assert_reference(texts: list[dict[str, Any]], groups: list[Group]) -> None:
    expected = [(number, *entry) for number, group in enumerate(groups) for entry in group.done]
    assert [(t["group"], tuple(t["token_ids"])) for t in texts] == [entry[:2] for entry in expected]
    assert [t["penalised"] for t in texts] == pytest.approx([entry[2] for entry in expected], abs=1e-3)
    assert [t["likelihood"] for t in texts] == pytest.approx([entry[3] for entry in expected], abs=1e-3)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", ["hamming", "ngram", "ngram3", "cumulative", "embedding", "ngram-embedding"])
def test_it_is_the_reference(kind: str, seed: int) -> None:
    lm, scorer = tabular(seed)
    rows = vectors(scorer)
    ways: dict[str, tuple[str, Alike]] = {
        "hamming": ("", hamming),
        "ngram": (", diversity=ngram", ngram(2)),
        "ngram3": (", diversity=ngram, ngram=3", ngram(3)),
        "cumulative": (", diversity=cumulative", cumulative),
        "embedding": (", diversity=embedding", lambda t, k: sum(cosine(rows, t[-1:], o[-1:]) for o in k)),
        "ngram-embedding": (
            ", diversity=ngram-embedding",
            lambda t, k: sum(
                cosine(rows, [*PROMPT, *t][-2:], [*PROMPT, *o][end - 2 : end])
                for o in k
                for end in range(len(PROMPT) + 1, len(PROMPT) + len(t) + 1)
            ),
        ),
    }
    spec, alike = ways[kind]
    replies = lm.generate(PROMPT, f"diverse-beam-search(beams=6, groups=3{spec})", n=6, max_new_tokens=6)
    texts = told(replies)
    assert_reference(texts, reference(scorer, PROMPT, 2, (0.5, 0.5), 6, alike))
    assert "embedding" in kind or any(t["penalised"] < t["likelihood"] - 1e-3 for t in texts)
    order = sorted(texts, key=lambda t: -t["penalised"])
    assert [reply.token_ids for reply in replies] == [t["token_ids"] for t in order]
    assert [reply.score for reply in replies] == [t["penalised"] for t in order]


def test_each_earlier_group_may_have_a_strength_of_its_own() -> None:
    lm, scorer = tabular(2)
    for given in ((0.0, 3.0), (3.0, 0.0)):
        spec = f"diverse-beam-search(beams=6, groups=3, strength={given[0]}x{given[1]})"
        texts = told(lm.generate(PROMPT, spec, n=6, max_new_tokens=6))
        assert_reference(texts, reference(scorer, PROMPT, 2, given, 6, hamming))


# Must hold


def test_one_group_is_beam_search() -> None:
    """Of the same width, on fifty prompts, against a search written independently."""
    lm, scorer = tabular(7)
    for place, prompt in enumerate(itertools.product(range(5), range(5), range(2))):
        ids, width = list(prompt), 1 + place % 4
        texts = told(lm.generate(ids, f"diverse-beam-search(beams={width}, groups=1)", n=width, max_new_tokens=5))
        assert_reference(texts, reference(scorer, ids, width, (), 5, hamming))


@cache
def wrapped() -> LanguageModel:
    return decodery.wrap(make_model("llama", vocab_size=330), byte_level_tokenizer(), name="tiny", fast="off")


SEARCHED: dict[str, Any] = {"max_new_tokens": 8, "ignore_eos": True}


def test_the_first_group_is_beam_search_of_its_width() -> None:
    for place, (beams, groups, strength) in enumerate([(4, 2, 0.5), (6, 3, 2.0), (6, 2, 0.0), (3, 3, 1e4)]):
        width = beams // groups
        settings = SEARCHED | {"stop_token_ids": list(range(0, 330, 7))}
        prompt = random_ids(9, place)
        spec = f"diverse-beam-search(beams={beams}, groups={groups}, strength={strength})"
        first = by_group(told(wrapped().generate(prompt, spec, n=beams, **settings)))[0]
        plain = f"beam-search(beams={width}, length_penalty=0, early_stopping=never)"
        expected = wrapped().generate(prompt, plain, n=width, **settings)
        assert first == [tuple(r.token_ids) for r in (expected if width > 1 else [expected])]


def test_without_strength_all_groups_are_alike() -> None:
    for place in range(3):
        spec = "diverse-beam-search(beams=6, groups=3, strength=0)"
        found = by_group(told(wrapped().generate(random_ids(9, place), spec, n=6, **SEARCHED)))
        assert found[0] == found[1] == found[2]


def test_with_all_strength_single_beams_never_choose_alike() -> None:
    for place in range(3):
        spec = "diverse-beam-search(beams=5, groups=5, strength=1e4)"
        replies = wrapped().generate(random_ids(9, place), spec, n=5, **SEARCHED)
        for step in range(8):
            assert len({reply.token_ids[step] for reply in replies}) == 5


@pytest.mark.parametrize("kind", ["hamming", "ngram", "cumulative", "embedding"])
def test_sums_are_told_apart(kind: str) -> None:
    """The likelihood is the model's own; what the search went by is never above it, unless cosines are negative."""
    spec = f"diverse-beam-search(beams=4, groups=2, strength=0.2, diversity={kind})"
    replies = wrapped().generate(random_ids(9, 1), spec, n=4, **SEARCHED)
    for text in told(replies):
        scored = wrapped().score([text["token_ids"]], prompt=random_ids(9, 1))
        assert text["likelihood"] == pytest.approx(scored[0].log_probability, abs=1e-3)
        assert text["log_probability"] == pytest.approx(scored[0].log_probability, abs=1e-3)
        assert kind == "embedding" or text["penalised"] <= text["likelihood"] + 1e-5


def test_each_step_is_one_forward_for_all_groups() -> None:
    lm, _ = tabular(ends=False)
    stats = lm.generate(PROMPT, "diverse-beam-search(beams=6, groups=3)", max_new_tokens=7).stats
    assert stats.forwards == 7
    assert stats.rows == 2 + 6 * 6


def test_a_group_wide_enough_finds_the_likeliest_text() -> None:
    lm, scorer = tabular(3, vocabulary=5, ends=False)
    every = {
        text: sum(math.log(float(scorer.law([*PROMPT, *text[:i]])[t])) for i, t in enumerate(text))
        for text in itertools.product(range(5), repeat=4)
    }
    reply = lm.generate(PROMPT, "diverse-beam-search(beams=125, groups=1)", max_new_tokens=4)
    assert tuple(reply.token_ids) == max(every, key=lambda text: every[text])


def test_penalising_otherwise_is_another_search() -> None:
    """Tokens used anywhere earlier in place of this step, and all groups in place of the earlier ones."""

    def anywhere(text: Text, kept: list[Text]) -> float:
        return sum(text[-1] in other for other in kept)

    changed = broken = 0
    for seed in range(4):
        lm, scorer = tabular(seed)
        texts = told(lm.generate(PROMPT, "diverse-beam-search(beams=4, groups=2, strength=1)", n=4, max_new_tokens=6))
        found = by_group(texts)
        other = reference(scorer, PROMPT, 2, (1.0,), 6, anywhere)
        changed += found[1] != [entry[0] for entry in other[1].done]
        symmetric = reference(scorer, PROMPT, 2, (1.0,), 6, hamming, everybody=True)
        broken += found[0] != [entry[0] for entry in symmetric[0].done]
    assert changed
    assert broken


# Parameters and settings


def test_both_orders_are_told_and_either_may_rank() -> None:
    lm, _ = tabular(1)
    spec = "diverse-beam-search(beams=6, groups=3, strength=2, length_penalty=0.5, order={})"
    first = lm.generate(PROMPT, spec.format("penalised"), n=6, max_new_tokens=6)
    other = lm.generate(PROMPT, spec.format("likelihood"), n=6, max_new_tokens=6)
    for replies, place in ((first, "place_by_penalised"), (other, "place_by_likelihood")):
        texts = sorted(told(replies), key=lambda t: t[place])
        assert [reply.token_ids for reply in replies] == [t["token_ids"] for t in texts]
        scores = [reply.score for reply in replies]
        assert scores == sorted(scores, reverse=True)
    length = len(other[0].token_ids)
    best = max(t["likelihood"] / len(t["token_ids"]) ** 0.5 for t in told(other))
    assert other[0].score == pytest.approx(best)
    assert length > 0


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("beams=5, groups=2", "5 beams do not divide into 2 groups"),
        ("beams=6, groups=3, strength=0.5x0.5x0.5", "2 of them joined by x"),
        ("strength=much", "a number of at least 0"),
        ("beams=4, groups=1, strength=2", "only where groups is above 1"),
        ("ngram=3", "only with diversity=ngram"),
        ("fading=3", "only with diversity=cumulative"),
    ],
)
def test_what_cannot_be_is_refused(spec: str, said: str) -> None:
    with pytest.raises(BadParameter, match=said):
        as_method(f"diverse-beam-search({spec})")


def test_more_texts_than_beams_and_draws_are_refused() -> None:
    lm, _ = tabular()
    with pytest.raises(Refused, match="at most as many texts as beams, which are 2, and n is 3"):
        lm.generate(PROMPT, "diverse-beam-search", n=3)
    with pytest.raises(Refused, match="does not run with temperature"):
        lm.generate(PROMPT, "diverse-beam-search", temperature=0.5)
