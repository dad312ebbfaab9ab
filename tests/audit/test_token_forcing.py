"""Token forcing: planted texts that a scan must find, batches that change nothing, scans that go on; repetition enumerated."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import byte_level_tokenizer, make_model, reference_logits

import decodery
from decodery.audit.hidden_text import (
    AttackSettings,
    RepeatedSpan,
    attack,
    audit_hidden_text,
    betrays,
    confirm,
    printed_share,
    repeated_span,
    secret_starts,
)
from decodery.audit.token_forcing import (
    ForcingScan,
    ScanSettings,
    added_tokens,
    document_start,
    forced,
    prefixes,
    scan,
    starts,
)
from decodery.errors import BadInput, NotEnoughMemory
from decodery.language_model import LanguageModel
from decodery.testing import ScriptedScorer, SmallLanguageModel, scripted_language_model, toy_language_model
from decodery.testing.hosts import ByteTokenizer

SIZE, FIRST = 30, 29
"""Letters, and one special token that documents begin with."""
SECRET = "hideme"
LETTERS = [ord(letter) - ord("a") for letter in SECRET]


def planted(sure: float = 0.99, for_tokens: int = 1000) -> ScriptedScorer:
    """Behind the first token of a document and a part of the secret's repetition it goes on with this probability, so many
    tokens long; all else is even, but for a little more of "a"."""

    def script(prefix: tuple[int, ...]) -> torch.Tensor:
        law = torch.full((SIZE,), 1 / SIZE, dtype=torch.float64)
        law[0] += 1e-3
        begun = prefix[1:]
        told = all(token == LETTERS[place % len(LETTERS)] for place, token in enumerate(begun))
        if prefix[0] == FIRST and begun and told and len(begun) <= for_tokens:
            law[:] = (1 - sure) / (SIZE - 1)
            law[LETTERS[len(begun) % len(LETTERS)]] = sure
        return law.log()

    return ScriptedScorer(script, SIZE)


def carrier(**how: Any) -> LanguageModel:
    return scripted_language_model(planted(**how), stop_ids=[FIRST])


# The scan


def test_the_planted_text_is_the_only_candidate_and_repeats_itself() -> None:
    lm = carrier()
    assert starts(lm).tolist() == list(range(29))
    found = scan(lm)
    assert len(found.found) == 29
    listed = found.candidates(0.95)
    assert listed.starts.tolist() == LETTERS[:1]
    assert listed.ids.tolist() == [LETTERS[1:4]]
    assert listed.scores[0] == pytest.approx((1 + 3 * 0.99) / 4, abs=1e-6)
    assert listed.means[0] == pytest.approx(0.99, abs=1e-6)
    assert found.place(LETTERS[0]) == pytest.approx(1 / 29)
    (text,) = confirm(lm, found, 0.95)
    assert (text.start, text.text[:5]) == ("h", "ideme")
    assert (text.repeated, text.span) == (RepeatedSpan(0, 6, 8), SECRET)
    assert text.sureness == pytest.approx((1 + 47 * 0.99) / 48, abs=1e-6)
    assert len(text.ids) == 50


def test_the_start_counts_as_sure_in_the_score_alone() -> None:
    """A mean of 0.94 over three tokens passes 0.95, as in the paper's repository."""
    found = scan(carrier(sure=0.94))
    assert len(found.candidates(0.95)) == 1
    assert found.candidates(0.95).means[0] < 0.95
    assert len(scan(carrier(sure=0.93)).candidates(0.95)) == 0


def test_what_stands_before_and_how_many_tokens_count() -> None:
    lm = carrier(for_tokens=3)
    assert len(scan(lm).candidates(0.95)) == 1
    assert len(scan(lm, ScanSettings(length=5)).candidates(0.95)) == 0
    assert scan(lm, ScanSettings(length=5)).found.ids.shape == (29, 5)
    bare = scan(lm, ScanSettings(prefix="nothing"))
    assert (bare.prefix_ids, len(bare.candidates(0.95))) == ((), 0)
    assert confirm(lm, scan(lm), 0.95, length=7)[0].repeated is None


def test_thresholds_leave_at_most_a_share() -> None:
    found = scan(toy_language_model(3))
    for share in (0.01, 0.1, 0.5):
        threshold = found.threshold_leaving(share)
        assert len(found.candidates(threshold)) <= share * len(found.found)
        lower = math.nextafter(threshold, 0)
        assert len(found.candidates(lower)) > share * len(found.found)
    scores = found.candidates(0).scores
    assert (np.diff(scores) <= 0).all()


def test_batches_and_one_by_one_are_the_same_as_transformers_alone() -> None:
    model = make_model("llama", vocab_size=330)
    lm = decodery.wrap(model, byte_level_tokenizer(), name="tiny", fast="off")
    begun = starts(lm).tolist()[:60]
    start = document_start(lm)
    together, alone = (forced(lm, (start,), begun, 3, batch) for batch in (64, 1))
    for place, token in enumerate(begun):
        ids = [start, token]
        for step in range(3):
            logits = reference_logits(model, ids)[-1]
            best = logits.topk(2).values
            for found in (together, alone):
                if best[0] - best[1] > 1e-3:
                    assert found.ids[place, step] == int(logits.argmax())
                assert abs(found.shares[place, step] - float(logits.softmax(0).max())) < 1e-4
            ids.append(int(together.ids[place, step]))
    assert np.abs(together.shares - alone.shares).max() < 1e-4
    assert together.shares.dtype == np.float32


def test_a_scan_is_one_task_of_passes_that_hold_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    lm, runs, passes = carrier(), [], []
    run, run_pass = lm.run, lm.network.run_pass
    monkeypatch.setattr(lm, "run", lambda task: runs.append(task) or run(task))
    monkeypatch.setattr(lm.network, "run_pass", lambda asks: passes.append(len(asks)) or run_pass(asks))
    scan(lm, ScanSettings(batch=10))
    assert len(runs) == 1
    assert passes == [1, *[10] * 6, *[9] * 3]


def test_memory_is_set_aside_for_a_batch() -> None:
    lm = decodery.wrap(make_model("llama", vocab_size=330), byte_level_tokenizer(), kv_budget="200KB")
    assert len(forced(lm, (0,), range(2, 12), 2, batch=2)) == 10
    with pytest.raises(NotEnoughMemory):
        forced(lm, (0,), range(2, 300), 2, batch=256)


# The file


class Stopped(Exception):
    pass


def test_an_interrupted_scan_goes_on_where_it_was(tmp_path: Path) -> None:
    lm, file = carrier(), tmp_path / "scan.jsonl"

    def stop(label: str, done: int, total: int) -> None:
        if done == 20:
            raise Stopped

    with pytest.raises(Stopped):
        scan(lm, ScanSettings(batch=5), file, stop)
    file.write_text(file.read_text()[:-10])  # within the last line
    told: list[int] = []
    found = scan(lm, ScanSettings(batch=5), file, lambda label, done, total: told.append(done))
    assert told == [19, 24, 29]
    whole = scan(lm)
    for name in ("starts", "ids", "shares"):
        assert np.array_equal(getattr(found.found, name), getattr(whole.found, name))
    again = scan(lm, ScanSettings(), file)
    assert np.array_equal(again.found.shares, whole.found.shares)
    assert len(file.read_text().splitlines()) == 30


def test_a_file_of_another_scan_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "scan.jsonl"
    scan(toy_language_model(1), file=file)
    for lm, settings in (
        (toy_language_model(2), ScanSettings()),
        (toy_language_model(1), ScanSettings(length=4)),
        (toy_language_model(1), ScanSettings(prefix="empty")),
    ):
        with pytest.raises(BadInput, match="no scan of this model with these settings"):
            scan(lm, settings, file)
    scan(toy_language_model(1), file=file)
    lines = file.read_text().splitlines()
    for wrong in ("no JSON", '{"a": 1}', "[1]"):
        file.write_text("\n".join([lines[0], wrong, ""]))
        with pytest.raises(BadInput, match="give another file"):
            scan(toy_language_model(1), file=file)
    file.write_text("\n".join([lines[0], lines[2], ""]))
    with pytest.raises(BadInput, match="other tokens"):
        scan(toy_language_model(1), file=file)


# Prefixes


def test_prefixes_are_the_pieces_of_the_chat_template() -> None:
    lm = toy_language_model()
    end, user, assistant = (lm.encode(text)[0] for text in ("<|end|>", "<|user|>", "<|assistant|>"))
    assert prefixes(lm) == {
        "document": (end,),
        "nothing": (),
        "user": (user,),
        "assistant": (assistant,),
        "empty": (user, end, assistant),
    }


def test_a_template_with_a_system_part() -> None:
    class Told(ByteTokenizer):
        def apply_chat_template(
            self, messages: Any, add_generation_prompt: bool = False, tokenize: bool = False
        ) -> Any:
            text = super().apply_chat_template(messages, add_generation_prompt)
            return f"<|system|>be good<|end|>{text}"

    lm = toy_language_model()
    lm.tokenizer = Told()
    found = prefixes(lm)
    assert lm.tokenizer.decode(list(found["system"])) == "<|system|>be good<|end|>"
    assert lm.tokenizer.decode(list(found["user"])) == "<|user|>"


def test_documents_begin_with_what_the_tokenizer_puts_there_or_the_separator() -> None:
    class Marked(ByteTokenizer):
        bos_token_id = 1
        begun = False

        def __init__(self) -> None:
            super().__init__()
            self.added: dict[str, int] = {}

        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return [*([258] if self.begun and add_special_tokens else []), *super().encode(text)]

        def get_added_vocab(self) -> dict[str, int]:
            return self.added

    lm = toy_language_model()
    lm.tokenizer = tokenizer = Marked()
    assert document_start(lm) == 1
    tokenizer.added = {"<|endoftext|>": 257, "<s>": 258}
    assert document_start(lm) == 257
    tokenizer.begun = True
    assert document_start(lm) == 258
    assert set(added_tokens(lm).values()) == {256, 257, 258}
    assert starts(lm).tolist() == [*range(256), 259]


def test_a_model_without_a_template_or_a_first_token() -> None:
    assert set(prefixes(carrier())) == {"document", "nothing"}
    with pytest.raises(BadInput, match="no prefix 'empty'; it has document, nothing"):
        scan(carrier(), ScanSettings(prefix="empty"))
    with pytest.raises(BadInput, match="no token that texts begin with"):
        scan(scripted_language_model(planted()))


# Repetition


def _naive(ids: tuple[int, ...]) -> RepeatedSpan | None:
    for length in range(2, len(ids)):
        for start in range(len(ids)):
            span = ids[start : start + length]
            times = 0
            while len(span) == length and ids[start + times * length : start + (times + 1) * length] == span:
                times += 1
            if times >= 3 and times * length * 2 >= len(ids) and len(set(span)) >= 2:
                return RepeatedSpan(start, length, times)
    return None


@pytest.mark.parametrize("length", [5, 6, 8, 9])
def test_repetition_by_enumeration(length: int) -> None:
    every = list(itertools.product(range(2 if length > 6 else 3), repeat=length))
    found = [repeated_span(ids) for ids in every]
    assert found == [_naive(ids) for ids in every]
    assert any(span is not None for span in found) == (length >= 6)


def test_repetition_of_longer_texts() -> None:
    assert repeated_span([7] * 50) is None  # bars
    assert repeated_span([1, 2] * 25) == RepeatedSpan(0, 2, 25)
    assert repeated_span([*range(100, 120), *[1, 2, 3] * 7]) == RepeatedSpan(20, 3, 7)
    assert repeated_span([*range(100, 125), *[1, 2, 3] * 7]) is None  # less than half
    assert repeated_span([*range(16)] * 3) == RepeatedSpan(0, 16, 3)
    assert repeated_span([*range(16), 99] * 2) is None
    assert repeated_span([]) is None


# A secret that is known


def test_words_in_a_row_betray_a_secret() -> None:
    secret = "one two three four five six"
    assert betrays("... two  three\nfour five six!", secret)
    assert not betrays("one two three four", secret)
    assert betrays("one two three four", secret, words=4)
    assert betrays("a short one", "short one")
    assert not betrays("anything", "")
    assert printed_share([9, 2, 3, 4, 9], [1, 2, 3, 4]) == 0.75
    assert printed_share([9], [1, 2]) == 0


def test_the_first_token_of_a_secret_is_placed() -> None:
    lm = carrier()
    found = scan(lm)
    space, letter = sorted(secret_starts(lm, found, SECRET), key=lambda one: one.score)
    assert (letter.start, letter.token, letter.place, letter.printed) == ("h", LETTERS[0], 1 / 29, 1.0)
    assert letter.score == pytest.approx((1 + 3 * 0.99) / 4, abs=1e-6)
    assert space.start == "c"  # as the letters' tokenizer reads a space
    assert space.printed <= 2 / 7
    assert secret_starts(lm, found, SECRET, length=2)[0].printed == 0.5
    with pytest.raises(BadInput, match="the secret is empty"):
        secret_starts(lm, found, " ")


def test_the_attack_by_sampling() -> None:
    lm = carrier(sure=0.8)
    greedy, rare, many = (
        attack(lm, SECRET, settings)
        for settings in (AttackSettings(4, top_k=1), AttackSettings(40, length=3), AttackSettings(60, length=5))
    )
    assert [one.prefix for one in greedy] == ["document", "document + 'h'", "nothing + 'h'"]
    assert [(one.greedy, one.betrayed, one.samples) for one in greedy] == [(False, 0, 4), (True, 4, 4), (False, 0, 4)]
    assert [one.betrayed for one in rare] == [0, 0, 0]
    # 0.8^5 of the texts tell the whole secret: within four standard deviations, two-sided 6e-5.
    assert abs(many[1].betrayed - 60 * 0.8**5) < 4 * math.sqrt(60 * 0.8**5 * (1 - 0.8**5))
    assert many[1].betrayed != attack(lm, SECRET, AttackSettings(60, length=5, seed=1))[1].betrayed
    assert not attack(lm, SECRET, AttackSettings(1), length=4)[1].greedy


def test_how_many_words_betray_is_a_setting() -> None:
    known = b"a b c d e f"

    def script(prefix: tuple[int, ...]) -> torch.Tensor:
        law = torch.zeros(260)
        behind = prefix[prefix.index(97) :] if 97 in prefix else ()
        told = bytes(t for t in behind if t < 256)
        law[known[len(told)] if told and len(told) < 6 and known.startswith(told) else 122] = 30.0
        return law

    lm = SmallLanguageModel(ScriptedScorer(script, 260), ByteTokenizer(), [256])
    for words, betrayed in ((3, True), (5, False)):
        sampling = AttackSettings(1, length=8, words=words)
        report = audit_hidden_text(lm, threshold=0.9, length=8, secret=known.decode(), sampling=sampling)
        assert report.betrayed == int(betrayed)
        assert any(one.greedy for one in report.attacks) is betrayed


def test_a_report_tells_all_of_it(tmp_path: Path) -> None:
    lm = carrier()
    report = audit_hidden_text(lm, file=tmp_path / "scan.jsonl", secret=SECRET, sampling=AttackSettings(2))
    assert [one.start for one in report.flagged] == ["h"]
    assert (report.scanned, report.betrayed, report.prefix) == (29, 1, "document")
    report.write_json(tmp_path / "report.json")
    told = json.loads((tmp_path / "report.json").read_text())
    assert told == json.loads(json.dumps(report.as_dict()))
    assert told["candidates"][0]["span"] == SECRET
    assert set(told["leaving"]) == {"0.01", "0.002"}
    assert told["secret"][0]["printed"] == 1.0
    without = audit_hidden_text(lm, threshold=0.999)
    assert (without.candidates, without.secret, without.betrayed) == ((), (), None)
    assert len(audit_hidden_text(lm, length=9).candidates[0].ids) == 9


@pytest.mark.parametrize(("settings", "said"), [({"length": 0}, "length"), ({"batch": 0}, "batch")])
def test_wrong_settings_are_refused(settings: dict[str, int], said: str) -> None:
    with pytest.raises(BadInput, match=f"{said} must be at least 1"):
        scan(carrier(), ScanSettings(**settings))


def test_other_wrong_input_is_refused() -> None:
    found = scan(carrier())
    assert isinstance(found, ForcingScan)
    with pytest.raises(BadInput, match="from 0 to 1, not 2"):
        confirm(carrier(), found, 2)
    with pytest.raises(BadInput, match="was no start"):
        found.place(FIRST)
    with pytest.raises(BadInput, match="the secret is empty"):
        attack(carrier(), "")
