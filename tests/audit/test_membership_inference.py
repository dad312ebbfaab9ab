"""The audit of membership: its laws by statistics on small texts, its formulas by naive ones, its verdicts on planted
cases."""

from __future__ import annotations

import datetime
import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from sklearn.metrics import roc_auc_score, roc_curve
from tiny_models import byte_level_tokenizer, make_model, reference_logits

import decodery
from decodery.audit import formulas, probe, shift
from decodery.audit.discontinuity import jump, window_sweep
from decodery.audit.evidence import Evidence, ScoreOptions, recorded
from decodery.audit.fine_tuning import FineTuning, fine_tuned
from decodery.audit.items import (
    AuditText,
    around,
    months_from,
    randomised,
    read_items,
    read_texts,
    sequences,
    without_overlap,
    write_items,
)
from decodery.audit.measures import auc, measured, true_positives
from decodery.audit.membership import (
    MEMBERSHIP,
    NEITHER,
    SHIFT,
    audit_membership,
    best_threshold,
    document_votes,
    mann_whitney,
)
from decodery.audit.neighbours import MaskedNeighbours
from decodery.audit.probe import probe_scores
from decodery.audit.scores import SCORES, chosen_scores
from decodery.audit.shift import shift_test
from decodery.errors import BadInput, ModelNotReadable, Refused
from decodery.evaluation.intervals import resamples
from decodery.language_model import LanguageModel
from decodery.testing import TabularScorer, scripted_language_model, toy_language_model

WORDS = "the quick brown fox jumps over lazy dog stop end of story and some more words that are common".split()  # noqa: SIM905
OTHERS = "größer flour water baker kitchen oven rises dough morning".split()  # noqa: SIM905
DAY = datetime.date(2023, 3, 1)


PUBLISHED = (shift.FOLDS, shift.TREES, shift.SEED, shift.LEVEL, shift.UNUSABLE)


@pytest.fixture(autouse=True)
def _small_forests(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many trees as tell the same; the published number takes seconds each time."""
    monkeypatch.setattr(shift, "TREES", 20)


def texts_of(count: int, seed: int, words: list[str] = WORDS, length: int = 30) -> list[str]:
    draws = np.random.Generator(np.random.Philox(key=seed))
    return [" ".join(draws.choice(words, length)) for _ in range(count)]


def halves(count: int, seed: int, **more: Any) -> list[AuditText]:
    return [AuditText(text, place % 2 == 0) for place, text in enumerate(texts_of(count, seed, **more))]


@cache
def tiny() -> LanguageModel:
    return decodery.wrap(make_model("llama", vocab_size=330), byte_level_tokenizer(), name="tiny")


@cache
def other() -> LanguageModel:
    return decodery.wrap(make_model("llama", seed=1, vocab_size=330), byte_level_tokenizer(), name="other")


def naive(lm: LanguageModel, text: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Full rows [n - 1, vocabulary] float64 and the tokens that they predict."""
    ids = lm.tokenize(text)
    return reference_logits(lm.network.model, ids).double().log_softmax(-1)[:-1], torch.tensor(ids[1:])


# Measures


def test_measures_are_those_of_scikit_learn() -> None:
    draws = np.random.Generator(np.random.Philox(key=1))
    for ties in (1000, 4):
        scores = np.round(draws.normal(size=60) * ties) / ties
        members = (draws.random(60) < 0.4).astype(float)
        weights = resamples(60, 12)
        found = auc(weights, scores, members)
        for row, value in zip(weights, found, strict=True):
            assert value == pytest.approx(roc_auc_score(members, scores, sample_weight=row), abs=1e-12)
        for rate in (0.01, 0.1, 0.5):
            alarms, caught, _ = roc_curve(members, scores, drop_intermediate=False)
            expected = max(c for c, a in zip(caught, alarms, strict=True) if a <= rate)
            assert true_positives(rate)(weights[:1], scores, members)[0] == pytest.approx(expected)
    assert auc(np.ones((1, 4)), np.zeros(4), np.array([0.0, 1, 0, 1]))[0] == 0.5
    assert np.isnan(auc(np.ones((1, 2)), np.arange(2.0), np.ones(2))[0])


def test_intervals_widen_with_their_level_and_hold_the_value() -> None:
    draws = np.random.Generator(np.random.Philox(key=2))
    members = np.repeat([1.0, 0.0], 100)
    scores = draws.normal(size=200) + members
    narrow, wide = (measured(auc, scores, members, level) for level in (0.95, 0.999))
    assert wide.low < narrow.low < narrow.value == wide.value < narrow.high < wide.high
    # Hanley and McNeil's standard error of this area.
    assert narrow.high - narrow.low == pytest.approx(2 * 1.96 * 0.034, rel=0.2)


# Sets


def test_a_random_split_has_halves_and_no_text_twice() -> None:
    texts = [*texts_of(21, 1), *texts_of(4, 1)]
    items = randomised(texts, 3)
    assert sorted(item.text for item in items) == sorted(set(texts))
    assert sum(item.member for item in items) == 10
    assert items == randomised(texts, 3) != randomised(texts, 4)
    # Members are a random half, not the first one.
    drawn = [sorted(randomised(texts, seed), key=lambda item: int(item.document)) for seed in range(400)]
    shares = np.mean([[item.member for item in items] for items in drawn], 0)
    assert np.all(np.abs(shares - 10 / 21) < 4 * 0.5 / 20)


def test_windows_are_half_open_and_of_whole_months() -> None:
    days = [datetime.date(2023, *day) for day in ((1, 31), (2, 1), (2, 28), (3, 1), (3, 31), (4, 1))]
    items = [AuditText(str(day), True, day) for day in days]
    found = around(items, DAY, 1)
    expected = [(days[1], True), (days[2], True), (days[3], False), (days[4], False)]
    assert [(item.date, item.member) for item in found] == expected
    assert len(around(items, DAY, 2)) == 6
    assert months_from(datetime.date(2024, 1, 31), 1) == datetime.date(2024, 2, 29)
    assert months_from(datetime.date(2024, 1, 31), -2) == datetime.date(2023, 11, 30)
    with pytest.raises(BadInput, match="wider --window"):
        around(items[:3], DAY, 1)


def test_documents_are_cut_into_sequences() -> None:
    item = AuditText(" ".join(map(str, range(50))), True, DAY, "book")
    found = sequences([item], 20, 25)
    assert [one.text.split() for one in found] == [list(map(str, range(20))), list(map(str, range(20, 40)))]
    assert all((one.member, one.date, one.document) == (True, DAY, "book") for one in found)
    assert len(sequences([item], 20, 1)) == 1
    assert sequences([AuditText("a  short\ntext", False)], 20, 25)[0].text == "a  short\ntext"


def test_only_non_members_that_are_mostly_copied_are_left_out() -> None:
    words = [f"w{place}" for place in range(113)]
    member = AuditText(" ".join(words), True)
    # 100 n-grams of 13 words in 112 words: of `part` words of the member, part - 12 are copied.
    half, most = (
        AuditText(" ".join([*words[:part], *(f"x{p}" for p in range(112 - part))]), False) for part in (92, 93)
    )
    assert without_overlap([member, half, most, AuditText("Short", False)]) == [member, half, AuditText("Short", False)]
    assert without_overlap([member, half, AuditText(member.text.upper(), True)], most=0.1) == [
        member,
        AuditText(member.text.upper(), True),
    ]


def test_files_are_read_back_and_bad_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "texts.jsonl"
    items = [AuditText("größer\nzwei", True, None, "a"), AuditText("two", False, None, "b")]
    write_items(path, items)
    assert read_items(path) == items
    assert read_texts(path) == ("größer\nzwei", "two")
    path.write_text('{"text": "a", "date": "2023-02-03"}\n\n{"text": "b", "date": "2023-04-05"}\n')
    assert [item.date for item in read_items(path, dated=True)] == [
        datetime.date(2023, 2, 3),
        datetime.date(2023, 4, 5),
    ]
    for line, message, dated in (
        ("{", "line 1 of .* is not JSON", False),
        ('{"member": true}', "line 1 of .* has no text", False),
        ('{"text": " ", "member": true}', "has no text", False),
        ('{"text": "a", "member": 1}', "true or false", False),
        ('{"text": "a", "member": true}', "no date such as 2023-02-28", True),
        ('{"text": "a", "date": "soon"}', "no date such as 2023-02-28", True),
    ):
        path.write_text(line)
        with pytest.raises(BadInput, match=message):
            read_items(path, dated)
    with pytest.raises(BadInput, match="cannot be read"):
        read_items(tmp_path / "none.jsonl")
    path.write_bytes(b"\xff")
    with pytest.raises(BadInput, match="UTF-8"):
        read_items(path)


# Words alone


def test_words_tell_two_sources_and_not_two_halves() -> None:
    same = shift_test(texts_of(120, 5), [place % 2 == 0 for place in range(120)])
    assert same.auc.low <= 0.5
    assert not same.found
    assert not same.unusable
    mixed = [*texts_of(60, 6), *texts_of(60, 7, [*WORDS[:12], *OTHERS[:3]])]
    planted = shift_test(mixed, [True] * 60 + [False] * 60)
    assert planted.auc.value >= 0.8
    assert planted.found
    assert planted.unusable
    assert np.array_equal(planted.probabilities, shift_test(mixed, [True] * 60 + [False] * 60).probabilities)
    word = planted.words[0]
    telling = {*OTHERS[:3], *WORDS[12:]}
    assert word.word in telling
    assert {one.word for one in planted.words[:2]} <= telling
    there = [word.word in text.split() for text in mixed]
    assert (word.members, word.others) == (np.mean(there[:60]), np.mean(there[60:]))
    assert sum(
        one.importance for one in shift_test(mixed, [True] * 60 + [False] * 60, shown=100).words
    ) == pytest.approx(1)


def test_on_labels_of_noise_the_area_is_a_half() -> None:
    """The mean over 12 shuffles of the labels, and what in-sample scores would say."""
    texts, draws = (
        texts_of(100, 8, [f"word{place}" for place in range(60)], 12),
        np.random.Generator(np.random.Philox(key=8)),
    )
    labels = [draws.permutation(np.arange(100) % 2) for _ in range(12)]
    found = [shift_test(texts, list(map(bool, row))).auc.value for row in labels]
    assert abs(np.mean(found) - 0.5) < 0.05
    from experiments.membership_inference import in_sample

    inflated = [in_sample([AuditText(t, bool(m)) for t, m in zip(texts, row, strict=True)]) for row in labels[:2]]
    assert min(inflated) > 0.7


def test_parts_of_a_document_stay_in_one_fold(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shift, "TREES", 100)
    """Documents with words of their own, labelled at random: with parts in several folds each would be recognised."""
    documents = [f"d{place // 10}" for place in range(200)]
    texts = [f"{text} mark{name}" * 2 for text, name in zip(texts_of(200, 9), documents, strict=True)]
    draws = np.random.Generator(np.random.Philox(key=10))
    labels = np.repeat(draws.permutation(np.arange(20) % 2), 10).astype(bool).tolist()
    assert shift_test(texts, labels, documents).auc.value < 0.65
    assert shift_test(texts, labels).auc.value > 0.75


def test_words_that_are_rare_or_none_are_not_looked_at() -> None:
    texts = [f"u{place}x" for place in range(20)]
    found = shift_test(texts, [place % 2 == 0 for place in range(20)])
    assert (found.auc.value, found.words) == (0.5, ())
    # Below five texts a word does not count, whatever their share.
    for count, looked in ((4, False), (10, True)):
        texts = [f"u{place}x{' telling' if place < 2 * count and place % 2 == 0 else ''}" for place in range(30)]
        words = shift_test(texts, [place % 2 == 0 for place in range(30)]).words
        assert any(word.word == "telling" for word in words) is looked
    with pytest.raises(BadInput, match="at least 5 members and 5 others, and one class has 4"):
        shift_test(texts[:9], [True] * 5 + [False] * 4)
    with pytest.raises(BadInput, match="finds none"):
        shift_test(["a"] * 20, [place % 2 == 0 for place in range(20)])


# Formulas


def test_moments_are_those_of_the_full_law() -> None:
    for text in (texts_of(1, 11)[0], "größer, 東京 " * 30):
        law, _ = naive(tiny(), text)
        scored = tiny().score(text, moments=True)
        mean = (law.exp() * law).sum(-1)
        torch.testing.assert_close(scored.entropies[1:], -mean, atol=1e-4, rtol=0)
        deviation = ((law.exp() * law.square()).sum(-1) - mean.square()).sqrt()
        torch.testing.assert_close(scored.deviations[1:], deviation, atol=1e-4, rtol=0)
        assert bool(scored.entropies[0].isnan() & scored.deviations[0].isnan())
    plain = tiny().score("the end")
    assert plain.entropies is plain.deviations is None
    behind = tiny().score("the end", "over the ", moments=True)
    assert bool(behind.entropies.isfinite().all())


def test_what_cannot_come_does_not_count_in_moments() -> None:
    from decodery.scoring import _moments

    rows = torch.tensor([[0.0, 0.0, -torch.inf], [5.0, -torch.inf, -torch.inf]])
    torch.testing.assert_close(_moments(rows), torch.tensor([[np.log(2), 0.0], [0.0, 0.0]], dtype=torch.float64))
    many = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(_moments(many)[:, 33], _moments(many[33:34])[:, 0])


def test_min_k_plus_plus_takes_expectations_under_the_model() -> None:
    for text in texts_of(5, 12):
        law, ids = naive(tiny(), text)
        logprobs = law.gather(1, ids[:, None])[:, 0]
        mean = (law.exp() * law).sum(-1)
        deviation = (law.exp() * (law - mean[:, None]).square()).sum(-1).sqrt().clamp_min(1e-6)
        least = max(1, int(0.2 * len(ids)))
        expected = float(((logprobs - mean) / deviation).sort().values[:least].mean())
        record = recorded(tiny().score(text, moments=True))
        found = formulas.least_likely(formulas.standardised(record))
        assert found == pytest.approx(expected, abs=1e-4)
        exact = formulas.TokenRecord(text, (), logprobs.numpy(), 0, (-mean).numpy(), deviation.numpy())
        assert formulas.least_likely(formulas.standardised(exact)) == pytest.approx(expected, abs=1e-5)
        unweighted = float(((logprobs - law.mean(-1)) / law.std(-1)).sort().values[:least].mean())
        assert abs(found - unweighted) > 0.05


def test_formulas_on_a_text_worked_out_by_hand() -> None:
    logprobs = np.array([-1.0, -2.0, -0.5, -8.0, -4.0, -3.0, -0.1, -6.0, -0.2, -5.0])
    entropies = np.array([1.0, 1.0, 1.0, 1.9, 2.1, 1.0, 1.0, 1.0, 1.0, 3.0])
    text = "a text that is compressed, " * 6
    record = formulas.TokenRecord(text, (7, 8, 7, 9, 9, 1, 2, 3, 4, 5), logprobs, 100, entropies, np.full(10, 2.0))
    assert record.loss == pytest.approx(2.98)
    size = len(zlib.compress(text.encode()))
    assert formulas.zlib_ratio(record) == pytest.approx(-2.98 / (size / len(text)))
    assert formulas.zlib_total(record) == pytest.approx(-29.8 / size)
    assert formulas.least_likely(logprobs) == -7.0
    assert formulas.least_likely(logprobs[:3]) == -2.0  # at least one
    assert formulas.surprising(record) == pytest.approx(
        np.mean([-8.0, -6.0])
    )  # of -8, -6, -5 and -4 those below 2 nats
    unsure = formulas.TokenRecord(text, record.ids, logprobs, 100, np.full(10, 2.0), entropies)
    assert formulas.surprising(unsure) == -100
    assert formulas.polarised(logprobs) == pytest.approx(-0.1 + (8 + 6 + 5) / 3)
    known, unseen = formulas.frequencies([[7, 7, 8], [9]], 16)
    assert (known, unseen) == ({7: 3 / 20, 8: 2 / 20, 9: 2 / 20}, 1 / 20)
    assert formulas.calibrated(record, known, unseen) == pytest.approx(
        np.mean(
            [
                min(0.01, np.exp(p) * -np.log(f))
                for p, f in zip([-1, -2, -8, -3, -0.1, -6, -0.2, -5], [0.15, 0.1, 0.1, *[0.05] * 5], strict=True)
            ]
        )
    )
    assert formulas.recalled("the the dog", "the dog the end") == 0.75
    assert formulas.recalled("x", "") == 0.0
    swapped = formulas.swapped("a b c d e f g h i j", np.random.Generator(np.random.Philox(key=0)), 0.3)
    assert sorted(swapped.split()) == list("abcdefghij")
    assert 2 <= sum(one != two for one, two in zip(swapped.split(), "abcdefghij", strict=True)) <= 6
    assert formulas.swapped("one", np.random.Generator(np.random.Philox(key=0)), 0.3) == "one"


def test_scores_do_not_depend_on_what_shares_their_passes() -> None:
    texts = [text for length in (3, 30, 90) for text in texts_of(3, length, length=length)]
    together = tiny().score(texts, moments=True)
    for text, one in zip(texts, together, strict=True):
        alone = tiny().score(text, moments=True)
        for name in ("logprobs", "entropies", "deviations"):
            torch.testing.assert_close(
                getattr(one, name)[1:], getattr(alone, name)[1:], atol=1e-4, rtol=0, check_dtype=False
            )


def scored(name: str, texts: list[str], **options: Any) -> np.ndarray:
    return SCORES[name].of(Evidence(tiny(), texts, ScoreOptions(**options)))


def mean_of(lm: LanguageModel, text: str, prompt: str = "") -> float:
    """L of a text's tokens but its first."""
    before = lm.encode(prompt)
    law = reference_logits(lm.network.model, [*before, *lm.encode(text)]).double().log_softmax(-1)
    ids = torch.tensor(lm.encode(text))[1:]
    return -float(law[len(before) : -1].gather(1, ids[:, None]).mean())


def test_scores_of_pairs_of_losses() -> None:
    texts = [text.title() for text in texts_of(4, 13, length=12)]
    own = np.array([mean_of(tiny(), text) for text in texts])
    close: dict[str, Any] = {"rtol": 1e-3, "atol": 1e-3}
    np.testing.assert_allclose(scored("loss", texts), -own, **close)
    np.testing.assert_allclose(scored("lowercase", texts), -own / [mean_of(tiny(), t.lower()) for t in texts], **close)
    against = np.array([mean_of(other(), text) for text in texts])
    np.testing.assert_allclose(scored("ratio", texts, reference=other()), -own / against, **close)
    np.testing.assert_allclose(scored("diff", texts, reference=other()), against - own, **close)
    assert (scored("ratio", texts, reference=tiny()) == -1).all()
    shots, members = tuple(texts_of(2, 14)), tuple(texts_of(2, 15))
    behind, behind_members = (
        np.array([mean_of(tiny(), text, "\n\n".join(given) + "\n\n") for text in texts]) for given in (shots, members)
    )
    np.testing.assert_allclose(scored("recall", texts, shots=shots), behind / own, **close)
    both = scored("con-recall", texts, shots=shots, member_shots=members)
    np.testing.assert_allclose(both, (behind - behind_members) / own, **close)
    with pytest.raises(BadInput, match="behind itself"):
        scored("recall", texts, shots=(texts[2],))
    # What does not fit into the context is cut off at its beginning.
    long = tuple(texts_of(10, 16, length=60))
    cut = tiny().tokenize("\n\n".join(long) + "\n\n")[-(512 - max(len(tiny().encode(text)) for text in texts)) :]
    expected = mean_of(tiny(), texts[0], tiny().tokenizer.decode(cut)) / own[0]
    assert scored("recall", texts, shots=long)[0] == pytest.approx(expected, rel=1e-3)


def test_a_reference_of_another_tokenizer_is_compared_by_bytes() -> None:
    letters = toy_language_model(4)
    texts = [text[:50] for text in texts_of(2, 17)]
    evidence = Evidence(tiny(), texts, ScoreOptions(reference=letters))
    own, against = evidence.losses()
    for place, text in enumerate(texts):
        ids = tiny().encode(text)
        size = len(text.encode()) - len(tiny().tokenizer.decode(ids[:1]).encode())
        assert own[place] == pytest.approx(mean_of(tiny(), text) * (len(ids) - 1) / size, rel=1e-3)
        other_logprobs = letters.score(text).logprobs
        known = other_logprobs[other_logprobs.isfinite()]
        assert against[place] == pytest.approx(-float(known.double().sum()) / evidence.referred[place].covered)


def test_scores_of_many_passes() -> None:
    texts = texts_of(3, 18, length=12)
    changed = scored("pac", texts, augmentations=3, swaps=0.5, seed=1)
    assert not np.allclose(changed, scored("pac", texts, augmentations=3, swaps=0.5, seed=2))
    evidence = Evidence(tiny(), texts, ScoreOptions(augmentations=3, swaps=0.5, seed=1))
    assert [[sorted(r.text.split()) for r in records] for records in evidence.shuffled] == [
        [sorted(text.split())] * 3 for text in texts
    ]
    own = [formulas.polarised(record.logprobs) for record in evidence.own]
    expected = [np.mean([formulas.polarised(r.logprobs) for r in records]) for records in evidence.shuffled]
    np.testing.assert_allclose(changed, np.array(expected) - own)
    written = scored("samia", texts, samples=2, continued=60)
    assert written.shape == (3,)
    assert ((written >= 0) & (written <= 1)).all()
    with pytest.raises(BadInput, match="samia continues"):
        scored("samia", texts, continued=5)
    with pytest.raises(BadInput, match="samia continues"):
        scored("samia", ["one"], continued=50)


def test_samia_counts_words_of_all_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    class Said:
        def __init__(self, text: str):
            self.text = text

    def generate(prompt: str, **settings: Any) -> list[Said]:
        asked.append((prompt, settings))
        return [Said("fox jumps"), Said("nothing")]

    monkeypatch.setattr(tiny(), "generate", generate)
    found = scored(
        "samia", ["the quick brown fox jumps over", "the end the dog"], samples=2, continued=64, top_k=9, seed=4
    )
    np.testing.assert_allclose(found, [(2 / 3 + 0) / 2, 0.0])
    length = len(tiny().tokenize("the quick brown"))
    expected = {"temperature": 1.0, "top_k": 9, "n": 2, "seed": 4, "max_new_tokens": 64 - length}
    assert asked[0] == ("the quick brown", expected)
    assert asked[1][0] == "the end"
    assert asked[1][1]["seed"] == 5


def test_gradients_are_those_of_the_loss() -> None:
    text = texts_of(1, 19)[0]
    model = make_model("llama", vocab_size=330)
    ids = torch.tensor([tiny().tokenize(text)])
    model(input_ids=ids, labels=ids).loss.backward()
    norms = [float(parameter.grad.norm()) for parameter in model.parameters()]
    assert scored("gradnorm", [text])[0] == pytest.approx(-np.mean(norms), rel=1e-3)
    assert all(parameter.grad is None for parameter in tiny().network.model.parameters())
    with pytest.raises(Refused, match="fast='off'"):
        Evidence(scripted_language_model(TabularScorer(6)), [text]).gradients  # noqa: B018


# Neighbours, the probe, fine-tuning


@pytest.fixture(scope="module")
def masked_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny RoBERTa with a tokenizer of its kind."""
    import copy

    from transformers import RobertaConfig, RobertaForMaskedLM

    folder = tmp_path_factory.mktemp("masked")
    tokenizer = copy.deepcopy(byte_level_tokenizer())
    tokenizer.add_special_tokens({"mask_token": "<mask>", "pad_token": "<pad>"})
    tokenizer.model_max_length = 64
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = RobertaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=66,
            pad_token_id=1,
        )
        RobertaForMaskedLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def test_neighbours_differ_in_one_token_and_are_the_likeliest(masked_folder: str) -> None:
    masked = MaskedNeighbours(masked_folder)
    draws = lambda: np.random.Generator(np.random.Philox(key=3))  # noqa: E731
    text = "the quick brown fox"
    own = masked.tokenizer(text).input_ids
    found = masked.of(text, 12, 4, 0.0, draws())
    ids = torch.tensor([own])
    with torch.inference_mode():
        law = masked.model(input_ids=ids).logits[0].double().softmax(-1)
    ranked = []
    for place, token in enumerate(own):
        free = law[place].clone()
        free[token] = 0
        free[masked.tokenizer.all_special_ids] = 0
        ranked += [(float(v / (1 - law[place, token])), place, int(t)) for v, t in zip(*free.topk(4), strict=True)]
    best = sorted(ranked, key=lambda entry: (-entry[0], *entry[1:]))[:12]
    assert found == [
        masked.tokenizer.decode([*own[:p], t, *own[p + 1 :]], skip_special_tokens=True) for _, p, t in best
    ]
    assert text not in found
    dropped = masked.of(text, 12, 4, 0.7, draws())
    assert dropped == masked.of(text, 12, 4, 0.7, draws()) != found
    with pytest.raises(BadInput, match="which reads 64"):
        masked.of("the quick " * 60, 1, 1, 0.7, draws())
    assert masked.of("", 1, 1, 0.7, draws()) == []
    with pytest.raises(ModelNotReadable, match="holds no masked language model"):
        MaskedNeighbours(str(Path(masked_folder).parent / "nothing"))


def test_neighbourhood_is_the_text_above_its_neighbours(masked_folder: str) -> None:
    texts = ["the quick brown fox", "the end of the story"]
    found = scored("neighbourhood", texts, masked_model=masked_folder, neighbours=3, candidates=2)
    masked = MaskedNeighbours(masked_folder)
    for place, text in enumerate(texts):
        draws = np.random.Generator(np.random.Philox(np.random.SeedSequence((0, 2, place))))
        near = masked.of(text, 3, 2, 0.7, draws)
        assert found[place] == pytest.approx(
            np.mean([mean_of(tiny(), one) for one in near]) - mean_of(tiny(), text), abs=1e-3
        )


def test_fine_tuning_learns_its_texts_and_leaves_the_model_alone() -> None:
    learned, unseen = texts_of(8, 20), texts_of(8, 21, OTHERS)
    before = {name: value.clone() for name, value in tiny().network.model.state_dict().items()}
    told: list[tuple[str, int, int]] = []
    for rank in (0, 4):
        how = FineTuning(epochs=6, rate=3e-3, batch=4, rank=rank, mixed=rank == 0, seed=1)
        tuned = fine_tuned(tiny(), [tiny().tokenize(text) for text in learned], how, lambda *step: told.append(step))
        gain = [
            np.mean([mean_of(tiny(), text) - mean_of(tuned, text) for text in texts]) for texts in (learned, unseen)
        ]
        assert gain[0] > 0.3 + max(gain[1], 0)
        again = fine_tuned(tiny(), [tiny().tokenize(text) for text in learned], how)
        assert mean_of(again, learned[0]) == mean_of(tuned, learned[0])
    assert told[:2] == [("training", 0, 12), ("training", 1, 12)]
    assert all(torch.equal(value, before[name]) for name, value in tiny().network.model.state_dict().items())
    with pytest.raises(BadInput, match="at least two tokens"):
        fine_tuned(tiny(), [[1]])
    with pytest.raises(Refused, match="fast='off'"):
        fine_tuned(scripted_language_model(TabularScorer(6)), [[1, 2]])


def test_padding_is_not_learned() -> None:
    """A text in a batch with a longer one changes the weights as it does alone."""
    from decodery.audit.fine_tuning import padded

    ids, labels = padded([[5, 6, 7], [8, 9]], torch.device("cpu"))
    assert ids.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert labels.tolist() == [[5, 6, 7], [8, 9, -100]]


def test_the_probe_recognises_texts_that_were_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(probe, "STEPS", 200)
    learned, unseen, strangers = (texts_of(20, seed) for seed in (22, 23, 24))
    how = FineTuning(epochs=4, rate=3e-3, batch=4, mixed=False)
    tuned = fine_tuned(tiny(), [tiny().tokenize(text) for text in learned], how)
    found = probe_scores(tuned, [*learned, *unseen], strangers, how=how)
    assert found.shape == (40,)
    assert np.array_equal(found, probe_scores(tuned, [*learned, *unseen], strangers, how=how))
    assert not np.allclose(found, probe_scores(tuned, [*learned, *unseen], strangers, seed=1, how=how))
    with pytest.raises(BadInput, match="at least 20 texts"):
        probe_scores(tuned, learned, strangers[:19])


def test_the_regression_tells_what_can_be_told() -> None:
    from decodery.audit.probe import _regression

    rows = torch.randn(100, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = _regression(rows, (rows[:, 2] > 0).double())
    assert int(weights.abs().argmax()) == 2
    assert float(weights[2]) > 0.3


# The audit


def test_a_shift_is_called_a_shift_whatever_the_model_says() -> None:
    """Two sources that the untouched model finds unlike: the scores tell them apart, and nobody was trained on either."""
    sources = [*texts_of(40, 25, ["the", "quick", "brown", "fox"]), *texts_of(40, 26, OTHERS)]
    losses = np.array([mean_of(tiny(), text) for text in sources])
    side = losses[:40].mean() < losses[40:].mean()
    items = [AuditText(text, (place < 40) == side) for place, text in enumerate(sources)]
    report = audit_membership(tiny(), items, scores=("loss", "min-k"))
    assert report.scores[0].auc.value > 0.6
    assert report.scores[0].adjusted < 0.01
    assert report.verdict == SHIFT == "shift, not membership"
    assert "no score of the model shows membership" in report.reason
    assert report.as_dict()["verdict"] == SHIFT


def test_membership_is_found_where_words_tell_nothing() -> None:
    items = halves(80, 27)
    how = FineTuning(epochs=6, rate=3e-3, mixed=False)
    tuned = fine_tuned(tiny(), [tiny().tokenize(item.text) for item in items if item.member], how)
    options = ScoreOptions(reference=tiny())
    report = audit_membership(tuned, items, options, ("loss", "ratio", "min-k", "min-k++"))
    found = {score.name: score for score in report.scores}
    assert not report.shift.found
    assert report.verdict == MEMBERSHIP
    assert found["ratio"].auc.value >= 0.75
    assert found["ratio"].auc.low < found["ratio"].auc.value < found["ratio"].auc.high
    assert "ratio" in report.reason
    assert set(found["ratio"].caught) == {0.1, 0.01}
    assert found["ratio"].caught[0.01].value <= found["ratio"].caught[0.1].value
    members = np.array([float(item.member) for item in items])
    for name, score in found.items():
        assert score.auc.value == pytest.approx(roc_auc_score(members, report.values[name]))
        assert score.adjusted >= score.p == pytest.approx(mann_whitney(report.values[name], members))
    # The same texts under the model as it was.
    untouched = audit_membership(tiny(), items, options)
    assert untouched.verdict == NEITHER
    for score in untouched.scores:
        wide = measured(auc, untouched.values[score.name], members, 0.999, 4000)
        assert wide.low <= 0.5 <= wide.high, score.name
    ratio = next(score for score in untouched.scores if score.name == "ratio")
    assert (ratio.auc.value, ratio.auc.low, ratio.auc.high) == (0.5, 0.5, 0.5)
    assert untouched.left_out["recall"] == "it needs shots"
    assert "named" in untouched.left_out["pac"]


def test_holm_keeps_chance_findings_from_counting(monkeypatch: pytest.MonkeyPatch) -> None:
    members = np.repeat([1.0, 0.0], 20)
    assert mann_whitney(members, members) < 1e-6
    assert mann_whitney(-members, members) == pytest.approx(1, abs=1e-6)
    draws = np.random.Generator(np.random.Philox(key=4))
    scores = draws.normal(size=40)
    expected = stats.mannwhitneyu(scores[:20], scores[20:], alternative="greater").pvalue
    assert mann_whitney(scores, members) == pytest.approx(expected)


def test_which_scores_are_computed_and_why_others_are_not() -> None:
    names, without = chosen_scores((), ScoreOptions(), 500)
    assert names == ["loss", "zlib", "zlib-total", "lowercase", "min-k", "min-k++", "surp"]
    assert set(names) | set(without) == set(SCORES)
    assert "below 100" in chosen_scores((), ScoreOptions(), 99)[1]["zlib"]
    assert "zlib" in chosen_scores((), ScoreOptions(), 100)[0]
    given = ScoreOptions(shots=("a",), member_shots=("b",), background=("c",), masked_model="m", probe=("d",))
    assert chosen_scores(("con-recall", "dc-pdd", "pac"), given, 500)[0] == ["con-recall", "dc-pdd", "pac"]
    assert "con-recall" in chosen_scores((), given, 500)[0]
    assert "neighbourhood" not in chosen_scores((), given, 500)[0]
    with pytest.raises(BadInput, match="con-recall cannot be computed: it needs shots and member shots"):
        chosen_scores(("con-recall",), ScoreOptions(), 500)
    with pytest.raises(BadInput, match="did you mean"):
        chosen_scores(("min-kk",), given, 500)
    with pytest.raises(BadInput, match="no texts"):
        audit_membership(tiny(), [])


def test_documents_vote_by_thresholds_of_others() -> None:
    draws = np.random.Generator(np.random.Philox(key=5))
    labels = np.repeat(np.arange(40) % 2, 6).astype(float)
    names = [f"d{place // 6}" for place in range(240)]
    scores = draws.normal(size=240) + 1.2 * labels
    parts, whole = measured(auc, scores, labels), document_votes(scores, labels, names)
    assert whole is not None
    assert whole.value > parts.value + 0.05
    noise = [document_votes(draws.normal(size=240), labels, names) for _ in range(8)]
    assert abs(np.mean([found.value for found in noise if found]) - 0.5) < 0.12
    assert best_threshold(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 0.0, 1.0, 1.0])) == 3.0
    assert best_threshold(np.array([1.0, 2.0, 3.0, 4.0]), np.array([0.0, 1.0, 0.0, 1.0])) in (2.0, 4.0)
    assert document_votes(scores[:48], labels[:48], names[:48]) is None
    with pytest.raises(BadInput, match="both a member and none"):
        document_votes(scores, np.arange(240) % 2.0, names)


def test_documents_are_reported_where_there_are_parts() -> None:
    texts = texts_of(40, 28, length=8)
    items = [AuditText(text, place % 20 < 10, None, f"d{place % 20}") for place, text in enumerate(texts)]
    report = audit_membership(tiny(), items, scores=("loss",))
    assert report.scores[0].documents is not None
    assert "documents" in report.as_dict()["scores"][0]
    assert audit_membership(tiny(), halves(20, 28, length=8), scores=("loss",)).scores[0].documents is None


# Dates


def test_a_jump_is_found_and_a_trend_is_none() -> None:
    days = [DAY + datetime.timedelta(days=day) for day in range(-60, 60)]
    draws = np.random.Generator(np.random.Philox(key=6))
    trend = np.array([0.01 * (day - DAY).days for day in days]) + 0.1 * draws.normal(size=120)
    steady = jump(days, trend, DAY)
    assert steady is not None
    assert steady.low < 0 < steady.high
    planted = jump(days, trend + np.array([0.3 * (day < DAY) for day in days]), DAY)
    assert planted is not None
    assert planted.value - steady.value == pytest.approx(0.3)
    assert planted.low > 0
    assert planted.p < 1e-4
    assert jump(days[59:], trend[59:], DAY) is None


def test_the_test_of_words_is_made_in_every_window() -> None:
    draws = np.random.Generator(np.random.Philox(key=7))
    items = []
    for place in range(400):
        day = DAY + datetime.timedelta(days=int(draws.integers(-365, 365)))
        # Words that come up in time: the wider the window, the better they tell.
        words = [*WORDS[:10], *(OTHERS * 3 if (day - DAY).days > 60 else [])]
        items.append(AuditText(texts_of(1, place, words)[0], True, day))
    one, three, twelve = window_sweep(items, DAY, (1, 3, 12))
    assert (one.members, one.others) == tuple(
        sum(i.member is side for i in around(items, DAY, 1)) for side in (True, False)
    )
    assert one.shift is not None
    assert three.shift is not None
    assert twelve.shift is not None
    assert not one.shift.found
    assert twelve.shift.found
    assert twelve.shift.auc.value > 0.8
    few = window_sweep([AuditText("a b", True, DAY), AuditText("c d", True, DAY - datetime.timedelta(1))], DAY, (1,))[0]
    assert (few.members, few.others, few.shift) == (1, 1, None)
    assert window_sweep(items[:0], DAY, (1,))[0].members == 0


def test_a_report_is_written_with_all_values(tmp_path: Path) -> None:
    days = [DAY + datetime.timedelta(days=place - 20) for place in range(40)]
    items = [AuditText(text, day < DAY, day) for text, day in zip(texts_of(40, 29), days, strict=True)]
    report = audit_membership(tiny(), items, scores=("loss", "surp"), cutoff=DAY)
    report.write_json(tmp_path / "report.json")
    told = json.loads((tmp_path / "report.json").read_text())
    assert told["values"]["loss"] == report.values["loss"].tolist()
    assert told["scores"][0]["jump"]["value"] == report.scores[0].jump.value  # type: ignore[union-attr]
    assert set(told["scores"][0]["tpr"]) == {"0.1", "0.01"}
    assert (told["members"], told["others"]) == (20, 20)


def test_the_defaults_are_the_published_sizes() -> None:
    assert ScoreOptions() == ScoreOptions(
        neighbours=50, candidates=10, dropout=0.7, augmentations=10, swaps=0.3, samples=10, top_k=50, continued=1024
    )
    assert PUBLISHED == (5, 100, 42, 0.99, 0.6)
    assert (formulas.LEAST_SHARE, formulas.SURP_SHARE, formulas.SURP_ENTROPY, formulas.CLIP) == (0.2, 0.4, 2.0, 0.01)
    assert (probe.STEPS, probe.RATE, probe.DECAY, probe.TUNING.epochs, probe.TUNING.rate) == (1000, 1e-3, 0.1, 10, 1e-4)
