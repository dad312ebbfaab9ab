"""Copyright traps: what is kept and why, documents byte for byte, and detection on scores whose truth is known."""

from __future__ import annotations

import math
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from tiny_models import byte_level_tokenizer, make_model, reference_logits

import decodery
from decodery.audit.fine_tuning import FineTuning, fine_tuned
from decodery.audit.injection import (
    Injection,
    contexts,
    inject,
    inject_all,
    read_injections,
    remove,
    remove_all,
    write_injections,
)
from decodery.audit.measures import auc, measured
from decodery.audit.shift import shift_test
from decodery.audit.trap_detection import detect, report_of, trap_values, twin_prefixes
from decodery.audit.traps import (
    MEMBER,
    TWIN,
    Trap,
    TrapRecipe,
    jaccard,
    make_traps,
    opening,
    perplexities,
    read_traps,
    write_traps,
)
from decodery.errors import BadInput
from decodery.language_model import LanguageModel
from decodery.testing import toy_language_model

RECIPE = TrapRecipe(
    length=12,
    count=32,
    buckets=4,
    lowest=2,
    highest=121,
    hottest=2.5,
    step=0.25,
    round_trip=False,
    batch=64,
    repetitions=(1, 16),
)


@cache
def tiny() -> LanguageModel:
    tokenizer = byte_level_tokenizer()
    return decodery.wrap(make_model("llama", vocab_size=330, eos_token_id=0), tokenizer, name="tiny")


@cache
def made() -> list[Trap]:
    return make_traps(tiny(), RECIPE)


def perplexity(ids: tuple[int, ...]) -> float:
    law = reference_logits(tiny().network.model, [opening(tiny()), *ids]).double().log_softmax(-1)
    return math.exp(-float(law[:-1].gather(1, torch.tensor(ids)[:, None]).mean()))


# Making


def test_every_trap_is_as_long_and_as_likely_as_it_says() -> None:
    traps = made()
    width = 120 / 4
    assert len(traps) == 32
    for trap in traps:
        assert len(trap.ids) == 12
        assert trap.text == tiny().tokenizer.decode(list(trap.ids))
        assert trap.perplexity == pytest.approx(perplexity(trap.ids), rel=1e-3)
        assert 2 + width * trap.bucket <= int(trap.perplexity) < 2 + width * (trap.bucket + 1)
    assert max(jaccard(set(a.ids), set(b.ids)) for p, a in enumerate(traps) for b in traps[:p]) <= 0.2


def test_halves_are_equal_in_each_bucket_and_repetitions_take_turns() -> None:
    traps = made()
    assert Counter((t.bucket, t.split) for t in traps) == {(b, s): 4 for b in range(4) for s in (MEMBER, TWIN)}
    assert Counter((t.bucket, t.repetitions) for t in traps if t.split == MEMBER) == {
        (b, r): 2 for b in range(4) for r in (1, 16)
    }
    assert all(trap.repetitions == 0 for trap in traps if trap.split == TWIN)
    sides = [[t.perplexity for t in traps if t.split == side] for side in (MEMBER, TWIN)]
    assert stats.ks_2samp(*sides).pvalue > 0.001
    words = shift_test([t.text for t in traps], [t.split == MEMBER for t in traps])
    assert words.auc.low <= 0.5


def test_the_seed_decides() -> None:
    small = TrapRecipe(12, 8, 1, 2, 300, hottest=2.5, round_trip=False, batch=32)
    one = make_traps(tiny(), small)
    assert one == make_traps(tiny(), small)
    other = make_traps(tiny(), TrapRecipe(12, 8, 1, 2, 300, hottest=2.5, round_trip=False, batch=32, seed=1))
    assert not {t.ids for t in one} & {t.ids for t in other}


def test_a_round_trip_gives_the_very_tokens() -> None:
    recipe = TrapRecipe(4, 4, 1, 2, 3000, hottest=2.5, batch=64, rounds=4)
    for trap in make_traps(tiny(), recipe):
        assert tuple(tiny().encode(trap.text)) == trap.ids
        assert trap.text == trap.text.strip()


def test_the_papers_bounds_fill_every_whole_perplexity(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a made-up generator: a multiple of 100 takes as many of each whole perplexity, another count does not."""
    drawn = iter(range(10**6))

    class Said:
        def __init__(self) -> None:
            number = next(drawn)
            self.token_ids = [3 * number, 3 * number + 1, 3 * number + 2]

    class Words:
        bos_token_id = 1

        def decode(self, ids: Any) -> str:
            return " ".join(map(str, ids))

    class Made:
        name, tokenizer, stop_ids = "made", Words(), ()

        def generate(self, prompts: Any, **settings: Any) -> list[Said]:
            assert prompts == [[1]] * len(prompts)
            return [Said() for _ in prompts]

    monkeypatch.setattr(
        "decodery.audit.traps.perplexities", lambda lm, texts: [1 + (text[0] // 3 * 0.377) % 130 for text in texts]
    )
    lm: Any = Made()
    found = make_traps(lm, TrapRecipe(3, 200, 10, 1, 100, round_trip=False, batch=500))
    assert Counter(int(trap.perplexity) for trap in found) == dict.fromkeys(range(1, 101), 2)
    assert Counter(trap.bucket for trap in found) == dict.fromkeys(range(10), 20)
    coarse = make_traps(lm, TrapRecipe(3, 80, 10, 1, 100, round_trip=False, batch=500))
    assert Counter(trap.bucket for trap in coarse) == dict.fromkeys(range(10), 8)
    assert len({int(trap.perplexity) for trap in coarse}) < 80
    with pytest.raises(BadInput, match="0 of 20 traps were found in 2 rounds"):
        make_traps(lm, TrapRecipe(3, 20, 2, 200, 300, round_trip=False, rounds=2))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 15}, "take a multiple of 10"),
        ({"length": 0}, "length must be at least 1"),
        ({"lowest": 98, "buckets": 5, "count": 80}, "do not make 5 buckets"),
        ({"hottest": 0.5}, "temperatures go"),
        ({"step": 0.0}, "temperatures go"),
        ({"repetitions": ()}, "at least once"),
        ({"repetitions": (0, 1)}, "at least once"),
    ],
)
def test_recipes_that_cannot_be_are_refused(settings: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        TrapRecipe(**settings)


def test_perplexities_count_all_tokens_behind_the_first() -> None:
    texts = [trap.ids for trap in made()[:3]]
    assert perplexities(tiny(), texts) == pytest.approx([perplexity(ids) for ids in texts], rel=1e-3)
    assert opening(tiny()) == 0  # no beginning of texts, so their end


# Documents

DOCUMENTS = st.text(st.characters(blacklist_categories=("Cs",)), min_size=0, max_size=60)


@given(
    DOCUMENTS,
    st.text(st.characters(blacklist_categories=("Cs",)), min_size=1, max_size=8),
    st.integers(1, 8),
    st.integers(0, 99),
)
def test_what_goes_in_comes_out_byte_for_byte(text: str, trap: str, copies: int, seed: int) -> None:
    chance = np.random.Generator(np.random.Philox(key=seed))
    if copies > len(text.split(" ")):
        with pytest.raises(BadInput, match="need as many words"):
            inject(text, trap, copies, chance)
        return
    found, positions = inject(text, trap, copies, chance)
    assert len(set(positions)) == copies
    assert list(positions) == sorted(positions)
    written = found.encode()
    for position in positions:
        assert written[position:].startswith(f"{trap} ".encode())
        assert position == 0 or written[position - 1 : position] == b" "
    assert len(written) == len(text.encode()) + copies * (len(trap.encode()) + 1)
    assert remove(found, trap, positions) == text


def test_copies_stand_before_random_words() -> None:
    chance = np.random.Generator(np.random.Philox(key=1))
    counts = Counter(inject("a b c d", "X", 1, chance)[0] for _ in range(800))
    assert set(counts) == {"X a b c d", "a X b c d", "a b X c d", "a b c X d"}
    assert stats.chisquare(list(counts.values())).pvalue > 0.001
    assert inject("a b", "X", 2, chance)[0] == "X a X b"
    with pytest.raises(BadInput, match="needs some text"):
        inject("a b", "", 1, chance)
    with pytest.raises(BadInput, match="no copy of the trap at byte 2"):
        remove("X a X b", "X", [2])


def test_each_member_gets_a_document_of_its_own() -> None:
    traps = [trap for trap in made() if trap.split == MEMBER][:6] + [trap for trap in made() if trap.split == TWIN][:2]
    texts = [f"doc {place} " + "word " * (40 if place % 2 else 3) for place in range(20)]
    found, injected = inject_all(texts, traps, 30, seed=2)
    assert [one.trap for one in injected] == [trap.text for trap in traps[:6]]
    assert len({one.document for one in injected}) == 6
    assert all(one.document % 2 for one in injected)
    assert [len(one.positions) for one in injected] == [trap.repetitions for trap in traps[:6]]
    assert remove_all(found, injected) == texts
    assert sum(a != b for a, b in zip(found, texts, strict=True)) == 6
    assert inject_all(texts, traps, 30, seed=3)[1] != injected
    with pytest.raises(BadInput, match="6 traps need a document each, and 0 have 99 words"):
        inject_all(texts, traps, 99)
    with pytest.raises(BadInput, match="no document 20"):
        remove_all(texts, [Injection(20, "x", (0,))])


def test_what_stands_before_a_trap_has_no_copies_of_it() -> None:
    text = "one two three four five six"
    found, positions = inject(text, "TRAP", 5, np.random.Generator(np.random.Philox(key=1)))
    before = contexts([found], [Injection(0, "TRAP", positions)])["TRAP"]
    assert "TRAP" not in before
    assert text.startswith(before)
    middle = positions[2]
    assert before == remove(found.encode()[:middle].decode(), "TRAP", positions[:2])


def test_files_are_read_back(tmp_path: Path) -> None:
    write_traps(tmp_path / "traps.jsonl", made())
    assert read_traps(tmp_path / "traps.jsonl") == made()
    record = [Injection(3, "größer", (1, 5))]
    write_injections(tmp_path / "record.jsonl", record)
    assert read_injections(tmp_path / "record.jsonl") == record
    for read in (read_traps, read_injections):
        with pytest.raises(BadInput, match="cannot be read"):
            read(tmp_path / "none")
        (tmp_path / "bad").write_text('\n{"ids": 3}\n')
        with pytest.raises(BadInput, match="line 2 of"):
            read(tmp_path / "bad")


# Detection


def planted(fall: float, seed: int = 1) -> tuple[list[Trap], dict[str, np.ndarray]]:
    """Losses that are spread over the buckets, those of members lower by `fall` under the model alone."""
    chance = np.random.Generator(np.random.Philox(key=seed))
    traps, calm = [], []
    for place in range(80):
        reference = math.log(chance.uniform(5, 99))
        member = place % 2 == 0
        copies = (1, 4, 16, 64)[place // 2 % 4] if member else 0
        traps.append(
            Trap(
                (1, 2),
                f"t{place}",
                math.exp(reference),
                int(math.exp(reference)) // 20,
                MEMBER if member else TWIN,
                copies,
            )
        )
        calm.append(reference)
    other = np.array(calm)
    own = other - fall * np.array([trap.split == MEMBER for trap in traps])
    return traps, {"ratio": np.exp(own - other), "log-ratio": own / other, "loss": own, "min-k": own}


def test_the_ratio_sees_what_the_loss_cannot() -> None:
    traps, values = planted(0.2)
    report = report_of("m", "r", traps, values)
    for cell in report.cells:
        assert (cell.areas["ratio"].value, cell.areas["ratio"].low) == (1.0, 1.0)
        assert cell.areas["loss"].value < 0.7
        assert (cell.members, cell.twins) == (10, 40)
    assert [cell.repetitions for cell in report.cells] == [1, 4, 16, 64]
    assert set(report.buckets) == {0, 1, 2, 3, 4}
    assert report.rank == {}  # all alike
    assert report.bucket_correlation is None


def test_curves_are_correlations() -> None:
    traps, values = planted(0.0)
    for place, trap in enumerate(traps):
        if trap.split == MEMBER:
            values["ratio"][place] = 1.0 - 0.01 * (trap.repetitions in (16, 64)) + 0.005 * (trap.repetitions == 1)
    report = report_of("m", "r", traps, values)
    areas = [cell.areas["ratio"].value for cell in report.cells]
    assert areas == [0.0, 0.5, 1.0, 1.0]
    assert report.rank[2] == pytest.approx(stats.spearmanr([1, 4, 16, 64], areas).statistic)
    heights = [area.value for area in report.buckets.values()]
    assert report.bucket_correlation == pytest.approx(stats.pearsonr(list(report.buckets), heights).statistic)
    members = np.array([float(trap.split == MEMBER) for trap in traps])
    chosen = np.array([trap.bucket == 2 for trap in traps])
    assert report.buckets[2] == measured(auc, -values["ratio"][chosen], members[chosen])
    told = report.as_dict()
    assert told["cells"][0]["areas"]["ratio"]["value"] == 0.0
    assert told["spearman"] == {"2": report.rank[2]}


def test_lengths_are_judged_apart() -> None:
    traps, values = planted(0.2)
    both = [*traps, *(Trap((1, 2, 3), t.text, t.perplexity, t.bucket, t.split, t.repetitions) for t in traps)]
    doubled = {name: np.concatenate([column, -column]) for name, column in values.items()}
    areas = {
        (cell.length, cell.repetitions): cell.areas["ratio"].value for cell in report_of("m", "r", both, doubled).cells
    }
    assert set(areas.values()) == {0.0, 1.0}
    assert all(area == (1.0 if length == 2 else 0.0) for (length, _), area in areas.items())
    with pytest.raises(BadInput, match="no twins of 3 tokens"):
        report_of("m", "r", [*traps, both[80]], {name: column[:81] for name, column in doubled.items()})
    with pytest.raises(BadInput, match="members and twins"):
        report_of("m", "r", traps[::2], {name: column[::2] for name, column in values.items()})


def test_a_model_that_has_seen_nothing_is_at_chance() -> None:
    traps = made()
    values = trap_values(tiny(), tiny(), traps)
    assert (values["ratio"] == 1).all()
    report = report_of("tiny", "tiny", traps, values)
    members = np.array([trap.split == MEMBER for trap in traps])
    twins = ~members
    for cell in report.cells:
        area = cell.areas["ratio"]
        assert (area.value, area.low, area.high) == (0.5, 0.5, 0.5)
        chosen = twins | np.array([trap.repetitions == cell.repetitions for trap in traps])
        for name in ("loss", "min-k"):
            wide = measured(auc, -values[name][chosen], members[chosen].astype(float), 0.999, 10000)
            assert wide.low <= 0.5 <= wide.high


def test_values_are_those_of_the_laws() -> None:
    traps, other = (
        made()[:4],
        decodery.wrap(make_model("llama", 1, vocab_size=330, eos_token_id=0), byte_level_tokenizer(), name="o"),
    )
    values = trap_values(tiny(), other, traps)
    for place, trap in enumerate(traps):
        ids = tiny().encode(trap.text)
        losses = []
        for lm in (tiny(), other):
            law = reference_logits(lm.network.model, [0, *ids]).double().log_softmax(-1)
            losses.append(-law[:-1].gather(1, torch.tensor(ids)[:, None])[:, 0])
        assert values["loss"][place] == pytest.approx(float(losses[0].mean()), abs=1e-3)
        assert values["ratio"][place] == pytest.approx(math.exp(losses[0].mean() - losses[1].mean()), rel=5e-3)
        assert values["log-ratio"][place] == pytest.approx(float(losses[0].mean() / losses[1].mean()), rel=1e-3)
        least = losses[0].sort(descending=True).values[: max(1, int(0.2 * len(ids)))]
        assert values["min-k"][place] == pytest.approx(float(least.mean()), abs=1e-3)
    behind = trap_values(tiny(), other, traps[:1], ["the quick brown fox jumps"], longest=3)["loss"][0]
    ids, prefix = tiny().encode(traps[0].text), tiny().encode("the quick brown fox jumps")[-3:]
    law = reference_logits(tiny().network.model, [0, *prefix, *ids]).double().log_softmax(-1)[3:-1]
    assert behind == pytest.approx(-float(law.gather(1, torch.tensor(ids)[:, None]).mean()), abs=1e-3)


def test_a_twin_stands_where_a_member_like_it_does() -> None:
    traps = made()
    before = {trap.text: f"before {trap.bucket} {trap.text}" for trap in traps if trap.split == MEMBER}
    found = twin_prefixes(traps, before, 1)
    for trap, prefix in zip(traps, found, strict=True):
        assert prefix == before[trap.text] if trap.split == MEMBER else prefix.startswith(f"before {trap.bucket} ")
    assert found != twin_prefixes(traps, before, 2)
    with pytest.raises(BadInput, match="does not say where"):
        twin_prefixes(traps, {})
    with pytest.raises(BadInput, match="no member of its length"):
        twin_prefixes([trap for trap in traps if trap.split == TWIN], {})


def test_traps_that_were_trained_on_are_found() -> None:
    """The whole way on a small model: repeated traps are seen best."""
    traps = made()
    words = ["the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "stop", "end", "of", "story"]
    chance = np.random.Generator(np.random.Philox(key=5))
    texts = [" ".join(chance.choice(words, 40)) for _ in range(20)]
    published, injected = inject_all(texts, traps, seed=1)
    ids = [tiny().encode(text) for text in published]
    parts = [
        text[start : start + 120] for text in ids for start in range(0, len(text) - 1, 120) if len(text) > start + 1
    ]
    tuned = fine_tuned(tiny(), parts, FineTuning(epochs=12, rate=3e-3, batch=4, mixed=False))
    report = detect(tuned, tiny(), traps)
    areas = {cell.repetitions: cell.areas["ratio"].value for cell in report.cells}
    assert areas[16] > 0.85
    assert areas[16] >= areas[1]
    behind = detect(tuned, tiny(), traps, twin_prefixes(traps, contexts(published, injected)), 16)
    assert behind.cells[-1].areas["ratio"].value > 0.8
    assert remove_all(published, injected) == texts


def test_a_model_without_a_beginning_or_an_end_is_refused() -> None:
    lm = toy_language_model(4)
    lm.stop_ids = ()
    with pytest.raises(BadInput, match="no token that texts begin with"):
        opening(lm)


def test_the_defaults_are_those_of_the_scaled_recipe() -> None:
    assert TrapRecipe() == TrapRecipe(25, 80, 5, 5, 99, 0.5, 4.0, 0.5, 0.2, True, 128, 20, (1, 4, 16, 64), 0)
