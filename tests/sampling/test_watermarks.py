"""Watermarks that are in the draws: the law they keep, the tokens they give, and who can carry them.

Seeds are fixed; tests of a law fail for a right program with probability 1e-3 at most.
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch

from decodery.engine.method import Exactness
from decodery.engine.registry import find, names
from decodery.engine.scheduler import Scheduler
from decodery.engine.settings import Settings
from decodery.errors import BadInput, BadSetting, Refused
from decodery.sampling import Stage
from decodery.sampling.chance import DrawnSample, Keyed, Watermarked
from decodery.sampling.watermarks.keys import (
    ContextKey,
    ExponentialKey,
    GreenKey,
    InverseKey,
    SequenceKey,
    TournamentKey,
    WatermarkKey,
    WatermarkKeys,
    fresh_key,
    key_of,
    read_key,
)
from decodery.sampling.watermarks.numbers import unit, words
from decodery.testing import goodness_of_fit, scripted_language_model
from decodery.testing.outputs import new_request
from decodery.testing.scorers import TabularScorer

FALSE_ALARM = 1e-3
PROMPT = [0, 1, 2, 0, 1]
SCHEMES: list[type[SequenceKey]] = [ExponentialKey, InverseKey]
PLAIN = [name for name in names() if find(name).exactness is Exactness.IDENTICAL_TO_PLAIN and name != "autoregressive"]
LAW = torch.tensor([0.3, 0.05, 0.0, 0.1, 0.25, 0.02, 0.08, 0.2])


def model(vocabulary: int = 4) -> tuple[Any, TabularScorer]:
    scorer = TabularScorer(vocabulary, order=None, seed=3, layers=3)
    scorer.early = drafter = scorer.blurred(0.9)
    return scripted_language_model(scorer, drafter=drafter), scorer


def texts(lm: Any, key: Any, method: str = "autoregressive", **more: Any) -> list[tuple[int, ...]]:
    settings = {"temperature": 1.0, "max_new_tokens": 12, "seed": 1, "watermark": key, **more}
    prompts = settings.pop("prompts", None)
    if prompts is not None:
        return [tuple(reply.token_ids) for reply in lm.generate(prompts, method, **settings)]
    found = lm.generate(PROMPT, method, **settings)
    return [tuple(reply.token_ids) for reply in (found if isinstance(found, list) else [found])]


# Numbers


def test_numbers_are_splitmix64_s() -> None:
    """The outputs that Vigna's splitmix64.c gives for the seed 1234567."""
    found = words(np.array([1234567], np.uint64), np.arange(4, dtype=np.uint64))
    assert found.tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431]
    assert unit(np.array([2**64 - 1, 0, 2**11], np.uint64)).tolist() == [1 - 2.0**-53, 0.0, 2.0**-53]


def test_numbers_of_a_key_are_the_same_asked_for_singly_or_together() -> None:
    key, inverse = ExponentialKey(5, 50, 9), InverseKey(5, 50, 9)
    columns = key.columns([3, 0, 49])
    for entry in range(9):
        assert key.row(entry)[[3, 0, 49]].tolist() == columns[:, entry].tolist()
        assert inverse.numbers()[entry] == inverse.number(entry)
    assert sorted(inverse.order()) == list(range(50))
    assert inverse.order()[inverse.ranks()].tolist() == list(range(50))


def test_numbers_are_uniform_and_those_of_other_keys_others() -> None:
    numbers = ExponentialKey(5, 300, 64).columns(range(300))
    assert scipy.stats.kstest(numbers.ravel(), "uniform").pvalue > FALSE_ALARM
    rows = np.corrcoef(numbers.T)[np.triu_indices(64, 1)]
    assert np.abs(rows).max() < 5 / 300**0.5
    assert not np.isin(ExponentialKey(6, 300, 64).columns(range(300)), numbers).any()
    assert not np.isin(InverseKey(5, 300, 64).numbers(), numbers).any()
    orders = [InverseKey(secret, 6).order()[0] for secret in range(600)]
    assert scipy.stats.chisquare(np.bincount(orders)).pvalue > FALSE_ALARM


# The law


@pytest.mark.parametrize("scheme", SCHEMES)
def test_single_draws_have_the_law(scheme: type[SequenceKey]) -> None:
    """200,000 entries of 800 keys, by the printed formulas, which the draws are held to."""
    probabilities, counts = LAW.double().numpy(), np.zeros(8, np.int64)
    for secret in range(800):
        key = scheme(secret, 8, 250)
        if isinstance(key, ExponentialKey):
            with np.errstate(divide="ignore"):
                drawn = (-np.log(key.columns(range(8))) / probabilities[:, None]).argmin(0)
        else:
            assert isinstance(key, InverseKey)
            cumulated = probabilities[key.order()].cumsum() / probabilities.sum()
            drawn = key.order()[(cumulated[:, None] < key.numbers()).sum(0)]
        counts += np.bincount(drawn, minlength=8)
        if secret < 20:
            chance: Any = Watermarked(key).chance(DrawnSample(secret, 0, 1, [], 0))
            own = [chance.choose(LAW, place, Stage.TARGET) for place in range(250)]
            assert own == np.roll(drawn, -chance._begin).tolist()
    assert counts[2] == 0
    kept = probabilities > 0
    assert scipy.stats.chisquare(counts[kept], 200_000 * probabilities[kept] / probabilities.sum()).pvalue > 0.01


@pytest.mark.parametrize("method", ["autoregressive", "prompt-lookup"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_joint_law_of_a_text_is_the_model_s(scheme: type[SequenceKey], method: str) -> None:
    """Over keys and first entries; of a key of three entries all are spent."""
    lm, scorer = model()
    scheduler, requests = Scheduler(), []
    for secret in range(400):
        given = {"temperature": 1.0, "max_new_tokens": 3, "seed": secret % 7, "watermark": scheme(secret, 4, 3)}
        request, chosen = new_request(lm, method, PROMPT, Settings.of(given, 4))
        scheduler.submit(request, chosen)
        requests.append(request)
    scheduler.run()
    counts = Counter(tuple(request.new_tokens) for request in requests)
    assert goodness_of_fit(counts, scorer.joint(PROMPT, 3, Settings(temperature=1.0))).p_value > FALSE_ALARM


def test_truncation_changes_the_law_that_is_kept() -> None:
    lm, _ = model()
    for key in (ExponentialKey(1, 4), InverseKey(1, 4)):
        assert texts(lm, key, top_k=1) == texts(lm, None, temperature=0.0)
        assert {token for text in texts(lm, key, allowed_token_ids=[1, 3]) for token in text} == {1, 3}


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_first_entry_is_uniform_and_not_the_key_s(scheme: type[SequenceKey]) -> None:
    """A point mass on each token by turns tells nothing, so the entries are read off a law of two halves."""
    lm, _ = model()
    assert len({texts(lm, scheme(9, 4), seed=seed)[0] for seed in range(20)}) > 10
    key, half = scheme(9, 2, 16), torch.tensor([0.5, 0.5])
    begun = []
    for seed in range(1600):
        chance: Any = Watermarked(key).chance(DrawnSample(seed, 0, 1, [1, 2], 2))
        begun.append(chance._begin)
        assert chance.choose(half, 2, Stage.TARGET) in (0, 1)
    assert scipy.stats.chisquare(np.bincount(begun, minlength=16)).pvalue > FALSE_ALARM
    others = [Watermarked(scheme(8, 2, 16)).chance(DrawnSample(seed, 0, 1, [1, 2], 2)) for seed in range(50)]
    assert [other._begin for other in others] == begun[:50]  # type: ignore[attr-defined]
    another = [Watermarked(key).chance(DrawnSample(seed, 0, 1, [1, 3], 2)) for seed in range(50)]
    assert [other._begin for other in another] != begun[:50]  # type: ignore[attr-defined]


# The same tokens


@pytest.mark.parametrize(
    "key", [ExponentialKey(3, 4), InverseKey(3, 4), ContextKey(3, 4, 2)], ids=lambda key: key.scheme
)
def test_tokens_are_those_of_key_seed_and_prompt(key: WatermarkKey) -> None:
    """Whatever drafts, whatever else is in the batch, and whatever prompt was read before."""
    lm, _ = model()
    plain = texts(lm, key)
    assert plain == texts(lm, key)
    assert plain != texts(lm, type(key)(4, 4))
    assert plain != texts(lm, None)
    for method in PLAIN:
        assert texts(lm, key, method) == plain, method
    prompts = [PROMPT, [2, 2], PROMPT[:-1]]
    alone = [texts(lm, key, prompts=[prompt])[0] for prompt in prompts]
    assert texts(lm, key, prompts=prompts) == alone
    assert texts(lm, key, "prompt-lookup", prompts=prompts) == alone


@pytest.mark.parametrize("scheme", SCHEMES)
def test_samples_of_a_prompt_begin_at_entries_of_their_own(scheme: type[SequenceKey]) -> None:
    lm, _ = model()
    several = texts(lm, scheme(3, 4), n=4)
    assert len(set(several)) == 4
    assert several[0] == texts(lm, scheme(3, 4))[0]
    for method in PLAIN:
        assert texts(lm, scheme(3, 4), method, n=4) == several, method


def test_a_gumbel_key_is_the_keyed_source() -> None:
    lm, _ = model()
    assert texts(lm, ContextKey(77, 4, 3)) == texts(lm, None, chance=Keyed(77, 3))


def test_decisions_of_steps_have_noise_of_their_own() -> None:
    """xtc draws, too; the mark is in the tokens alone."""
    lm, _ = model()
    for key in (ExponentialKey(1, 4), InverseKey(1, 4)):
        some = {texts(lm, key, seed=seed, xtc_probability=0.5, xtc_threshold=0.2)[0] for seed in range(6)}
        assert len(some) > 1
        assert texts(lm, key, xtc_probability=0.5, xtc_threshold=0.2) != texts(lm, key)


# Who cannot carry it


@pytest.mark.parametrize("key", [ExponentialKey(3, 4), InverseKey(3, 4), ContextKey(3, 4)], ids=lambda key: key.scheme)
def test_methods_that_draw_otherwise_are_refused(key: WatermarkKey) -> None:
    lm, _ = model()
    for method in (
        "draft-model",
        "recursive-speculative-decoding",
        "spectr",
        "swift",
        "best-of-n",
        "cautious-next-token",
    ):
        assert not find(method).exactness.same_tokens
        with pytest.raises(Refused, match=f"{method} does not run with watermark: the mark is found where"):
            texts(lm, key, method)


@pytest.mark.parametrize(
    ("said", "more"),
    [
        ("watermark exp needs a temperature above 0: greedy text is the same under every key", {"temperature": 0.0}),
        ("chance and watermark exp both say where draws come from", {"chance": "gumbel"}),
        ("the watermark has 20 entries, and max_new_tokens is 21", {"max_new_tokens": 21}),
        ("the key is for 5 tokens, but this model scores 4", {"watermark": ExponentialKey(1, 5)}),
        ("watermark does not run with n=2: samples with the same key", {"watermark": ContextKey(1, 4), "n": 2}),
        ("watermark synthid needs a temperature above 0", {"watermark": TournamentKey(1, 4), "temperature": 0.0}),
        ("watermark gumbel needs a temperature above 0", {"watermark": ContextKey(1, 4), "temperature": 0.0}),
    ],
)
def test_what_could_not_be_found_again_is_refused(said: str, more: dict[str, Any]) -> None:
    lm, _ = model()
    given = {"watermark": ExponentialKey(1, 4, 20), "temperature": 1.0, "max_new_tokens": 20, "seed": 1, **more}
    with pytest.raises(BadSetting, match=said):
        lm.generate(PROMPT, "autoregressive", **given)


def test_what_it_goes_with() -> None:
    lm, _ = model()
    assert len(texts(lm, ExponentialKey(1, 4, 20), max_new_tokens=20)[0]) == 20
    assert texts(lm, GreenKey(1, 4), temperature=0.0)  # a step of the law, which greedy decoding keeps to
    assert texts(lm, GreenKey(1, 4), chance="gumbel") == texts(lm, GreenKey(1, 4), "prompt-lookup", chance="gumbel")
    settings = Settings.of({"watermark": GreenKey(1, 4)}, 4)
    assert settings.source is settings.chance
    assert Settings.of({}, 4).source == settings.chance


@pytest.mark.parametrize("scheme", SCHEMES)
def test_other_draws_are_refused(scheme: type[SequenceKey]) -> None:
    chance = Watermarked(scheme(1, 2, 4)).chance(DrawnSample(0, 0, 1, [1, 2], 2))
    law = torch.tensor([0.5, 0.5])
    for stage in (Stage.DRAFT, Stage.RESIDUAL, Stage.ORDER):
        with pytest.raises(Refused, match="the mark is in the target's own tokens"):
            chance.choose(law, 2, stage)
    with pytest.raises(Refused, match="draws for target"):
        chance.choose(law, 2, Stage.TARGET, 1)
    with pytest.raises(Refused, match="decisions on drafts"):
        chance.accept(0.5, 2)
    with pytest.raises(Refused, match="has 4 entries, and none for token 5"):
        chance.choose(law, 6, Stage.TARGET)
    with pytest.raises(Refused, match="none for token 0"):
        chance.choose(law, 1, Stage.TARGET)
    assert chance.choose(law, 2, Stage.LAW) in (0, 1)
    for place in range(2, 6):
        assert chance.race(law.log(), place, Stage.TARGET) == chance.choose(law, place, Stage.TARGET)
    assert chance.fork([1, 2]).choose(law, 3, Stage.TARGET) == chance.choose(law, 3, Stage.TARGET)


# Keys


@pytest.mark.parametrize("scheme", ["exp", "its", "gumbel", "kgw", "synthid"])
def test_a_key_is_written_and_read(scheme: str, tmp_path: Path) -> None:
    key = fresh_key(scheme, 40)
    path = tmp_path / "key.json"
    key.write(path)
    assert path.stat().st_mode & 0o077 == 0
    assert read_key(path) == key == key_of(json.loads(path.read_text()))
    assert key_of(key.as_dict()) == key
    assert str(key.key) not in repr(key)
    assert "vocabulary=40" in repr(key)
    assert fresh_key(scheme, 40) != key
    assert WatermarkKeys().check("watermark", path, 40) == key
    with pytest.raises(BadInput, match="exists already"):
        key.write(path)


def test_keys_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="cannot be read: No such file"):
        read_key(tmp_path / "none.json")
    with pytest.raises(BadInput, match="cannot be written"):
        fresh_key("exp", 4).write(tmp_path / "none" / "key.json")
    (tmp_path / "bad.json").write_text("{")
    with pytest.raises(BadInput, match="is no key: it holds no JSON"):
        read_key(tmp_path / "bad.json")
    with pytest.raises(BadSetting, match="there is no scheme 'mark'; known: exp, its"):
        key_of({"scheme": "mark"})
    with pytest.raises(BadSetting, match="a key of exp has no 'lenght'; did you mean length"):
        key_of({"scheme": "exp", "key": 1, "vocabulary": 4, "lenght": 3})
    with pytest.raises(BadSetting, match="the key has no key"):
        key_of({"scheme": "exp", "vocabulary": 4})
    with pytest.raises(BadSetting, match="watermark: length must be at least 2"):
        key_of({"scheme": "exp", "key": 1, "vocabulary": 4, "length": 1})
    with pytest.raises(BadSetting) as told:
        key_of({"scheme": {"key": 123456}})
    assert "123456" not in str(told.value)


@pytest.mark.parametrize(
    ("scheme", "name", "least", "most"),
    [
        ("exp", "key", 0, 2**63 - 1),
        ("exp", "vocabulary", 2, 2**31),
        ("its", "length", 2, 2**16),
        ("gumbel", "window", 1, 64),
        ("synthid", "layers", 1, 64),
    ],
)
def test_fields_have_bounds(scheme: str, name: str, least: int, most: int) -> None:
    given = {"scheme": scheme, "key": 1, "vocabulary": 40}
    for value in (least, most):
        assert getattr(key_of({**given, name: value}), name) == value
    for value in (least - 1, most + 1):
        with pytest.raises(BadSetting, match=f"watermark: {name} must be at least {least} and at most {most}"):
            key_of({**given, name: value})
    with pytest.raises(BadSetting, match="a share of 1 of 40 tokens is none of them, or all"):
        GreenKey(1, 40, share=1.0)
    with pytest.raises(BadSetting, match=r"a share of 0\.02 of 40"):
        GreenKey(1, 40, share=0.02)
    assert (GreenKey(1, 40, share=0.025).greens, GreenKey(1, 40, share=0.99).greens) == (1, 39)


def test_keys_as_published() -> None:
    assert (ExponentialKey(1, 4).length, InverseKey(1, 4).longest, ContextKey(1, 4).window) == (256, 256, 4)
    assert (GreenKey(1, 100).greens, GreenKey(1, 100).bias, GreenKey(1, 100).window) == (25, 2.0, 1)
    assert (TournamentKey(1, 4).layers, TournamentKey(1, 4).window, TournamentKey(1, 4).longest) == (30, 4, None)
