"""grammar-aligned-decoding: what the engine makes of the trie, by enumerated languages; what is kept, counted and refused."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from decodery.constraints import kept_tries
from decodery.constraints.grammar_aligned_decoding import GrammarAlignedDecoding
from decodery.constraints.grammatical_trie import Trie
from decodery.engine.settings import Settings
from decodery.errors import ConstraintFailed, Refused
from decodery.evaluation import aligned_check
from decodery.evaluation.check import check_method
from decodery.evaluation.weights_check import DEAD_END, LANGUAGE, dead_end_model, masses
from decodery.replies import Reply
from decodery.sampling.processors import ForbiddenTokens
from decodery.sampling.structured.constraint import constraint_of
from decodery.testing import (
    LetterTokenizer,
    ScriptedScorer,
    SmallLanguageModel,
    TabularScorer,
    exact_outputs,
    goodness_of_fit,
    scripted_language_model,
    story_scorer,
    total_variation,
)

MASSES = masses()
MASS = math.fsum(MASSES.values())
POSTERIOR = {text: mass / MASS for text, mass in MASSES.items()}
NAME = "grammar-aligned-decoding"
model = dead_end_model


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DECODERY_HOME", str(tmp_path))
    return tmp_path / "tries"


def run(lm: SmallLanguageModel, seed: int, spec: str = NAME, prompt: Any = (0,), **settings: Any) -> list[Reply]:
    asked = {"structured_outputs": LANGUAGE, "temperature": 1.0, "max_new_tokens": 12, "seed": seed, **settings}
    given: Any = lm.generate(list(prompt), method=spec, **asked)
    return list(given) if isinstance(given, list) else [given]


def said(reply: Reply) -> str:
    return reply.text.removesuffix("c")


def told(replies: list[Reply]) -> dict[str, Any]:
    return dict(replies[0].stats.details)


def test_the_first_text_is_masking_s() -> None:
    """By enumeration of all draws; and it is the very text of plain decoding at the same seed."""
    settings = Settings(temperature=1.0, max_new_tokens=12, structured_outputs=constraint_of("", LANGUAGE), seed=0)
    law = exact_outputs(model(), f"{NAME}(keep=request)", [0], settings)
    masked = {text: math.prod(0.45 if sign == "a" else 0.55 for sign in text) for text in MASSES}
    masked[DEAD_END] = 0.45
    found = {"".join("abc"[token] for token in tokens).removesuffix("c"): mass for tokens, mass in law.items()}
    assert total_variation(found, masked) < 1e-6
    lm = model()
    first = [said(run(lm, seed, f"{NAME}(keep=request)")[0]) for seed in range(40)]
    assert first == [said(run(lm, seed, "autoregressive")[0]) for seed in range(40)]


@pytest.mark.parametrize("spec", [NAME, f"{NAME}(at_once=7)", f"{NAME}(reuse=False)"])
def test_texts_come_to_have_the_model_s_law(spec: str) -> None:
    """Fixture A of the card at the size of a test: what is drawn late never enters the dead end."""
    lm = model()
    replies = run(lm, 1, spec, n=300)
    assert all(re.fullmatch("a{5}|b[ab]{4}", said(reply)) and reply.finish_reason == "stop" for reply in replies)
    late = Counter(map(said, replies[100:]))
    assert goodness_of_fit(late, POSTERIOR).p_value > 0.001
    assert told(replies)["mass_bound"] == pytest.approx(MASS, abs=1e-6)
    assert told(replies)["draws"] == 300


def test_weights_are_unbiased_from_the_first_draw_on() -> None:
    """The mean over tries of a weight is P(L), within four standard errors; of late draws each is P(L)."""
    lm = model()
    for number in (0, 3):
        weights = [run(lm, seed, f"{NAME}(keep=request, warmup={number})")[0].weight for seed in range(80)]
        found = np.array(weights, float)
        assert abs(found.mean() - MASS) < 4 * found.std() / math.sqrt(80) + 1e-9
    late = run(lm, 0, f"{NAME}(warmup=200)", n=5)
    assert [reply.weight for reply in late] == pytest.approx([MASS] * 5, abs=1e-6)
    texts = told(late)["texts"]
    assert [one["text"] for one in texts] == [reply.text for reply in late]
    assert [math.exp(one["log_weight"]) for one in texts] == pytest.approx([reply.weight for reply in late])


def test_the_bound_falls_over_requests() -> None:
    """Never below P(L), and each request begins where the last has ended."""
    lm, before = model(), 1.0
    for seed in range(30):
        details = told(run(lm, seed))
        assert details["mass_bound_before"] == before
        assert MASS - 1e-6 <= details["mass_bound"] <= before
        assert (details["draws_before"], details["draws"]) == (seed, seed + 1)
        before = details["mass_bound"]
    assert before < 0.7


def test_what_is_kept_is_told_apart() -> None:
    """Prompt, constraint, law, end tokens and session have tries of their own; what changes no law has not."""
    lm = scripted_language_model(story_scorer(24), stop_ids=(23,))

    def before(spec: str = NAME, **settings: Any) -> int:
        asked = {"structured_outputs": {"regex": "[ab]{2}"}, **settings}
        return int(told(run(lm, 0, spec, **asked))["draws_before"])

    assert before(n=5) == 0
    others: list[dict[str, Any]] = [
        {"prompt": (0, 1)},
        {"structured_outputs": {"regex": "a[ab]"}},
        {"temperature": 0.7},
        {"top_k": 22},
        {"stop_token_ids": [22]},
        {"session": "another"},
        {"target": "guidance(scale=1.5, negative='ab')"},
        {"processors": [lambda ids, scores: scores]},
        {"processors": [lambda ids, scores: scores]},
        {"processors": [ForbiddenTokens((2,))]},
    ]
    for settings in others:
        assert before(**settings) == 0, settings
    same: list[dict[str, Any]] = [{"max_new_tokens": 9}, {"logprobs": 1}, {"stop": ["bbb"]}, {"chance": "gumbel"}]
    for number, settings in enumerate(same):
        assert before(**settings) == 5 + number, settings
    assert before(f"{NAME}(keep=request)") == 0
    lm.forget()
    assert before() == 0


def test_few_tries_stay_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_tries, "MOST_TRIES", 2)
    lm = model()
    for prompt in ((0,), (1,), (0,), (2,)):
        run(lm, 0, prompt=prompt)
    assert told(run(lm, 0, prompt=(0,)))["draws_before"] == 2
    assert told(run(lm, 0, prompt=(1,)))["draws_before"] == 0


def test_a_file_outlives_the_model(home: Path) -> None:
    details = told(run(model(), 0, f"{NAME}(keep=disk)", n=50))
    assert [path.name for path in home.iterdir()] == [details["file"]]
    again = told(run(model(), 1, f"{NAME}(keep=disk)"))
    assert again["draws_before"] == 50
    assert again["mass_bound_before"] == details["mass_bound"]
    assert again["file"] == details["file"]
    assert told(run(model(), 0, f"{NAME}(keep=memory)"))["draws_before"] == 0
    assert "file" not in told(run(model(), 0))


def test_files_are_not_many(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was used longest ago goes."""
    monkeypatch.setattr(kept_tries, "MOST_FILES", 2)
    names = []
    for prompt in ((0,), (1,)):
        names.append(told(run(model(), 0, f"{NAME}(keep=disk)", prompt=prompt))["file"])
        os.utime(home / names[-1], (len(names), len(names)))
    run(model(), 0, f"{NAME}(keep=disk)", prompt=(0,))  # is read, and so used
    last = told(run(model(), 0, f"{NAME}(keep=disk)", prompt=(2,)))["file"]
    assert {path.name for path in home.iterdir()} == {names[0], last}


def test_a_file_that_is_none_is_begun_anew(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    name = told(run(model(), 0, f"{NAME}(keep=disk)"))["file"]
    whole = (home / name).read_bytes()
    for content in (b"", b"PK not a file", whole[: len(whole) // 2]):
        (home / name).write_bytes(content)
        assert told(run(model(), 0, f"{NAME}(keep=disk)"))["draws_before"] == 0
        assert "is begun anew" in caplog.text
        caplog.clear()
    home.joinpath(name).unlink()
    home.rmdir()
    home.write_text("in the way")
    assert told(run(model(), 0, f"{NAME}(keep=disk)"))["file"] is None
    assert "is not kept" in caplog.text


def test_forwards_are_one_a_token_and_none_for_known_places() -> None:
    """The prompt's, and one for each token but the first and the last; a second draw of the same text needs none."""
    lm = model()
    [first] = run(lm, 3)
    assert first.stats.forwards == first.stats.rounds == 6
    assert told([first])["reused"] == 0
    [second] = run(lm, 3, structured_outputs={"regex": "b[ab]{4}"}, top_k=1)
    assert second.stats.forwards == 6
    [again] = run(lm, 4, structured_outputs={"regex": "b[ab]{4}"}, top_k=1)
    assert (again.stats.forwards, told([again])["reused"]) == (1, 5)
    [asked] = run(lm, 4, f"{NAME}(reuse=False)", structured_outputs={"regex": "b[ab]{4}"}, top_k=1)
    assert (asked.stats.forwards, told([asked])["reused"]) == (6, 0)
    [looked_at] = run(lm, 4, structured_outputs={"regex": "b[ab]{4}"}, top_k=1, logprobs=1)
    assert (looked_at.stats.forwards, len(looked_at.logprobs or ())) == (6, 6)
    assert looked_at.token_ids == again.token_ids


def test_a_place_off_the_known_ones_is_scored_with_all_before_it() -> None:
    """After known places the tokens since the prompt are read in one forward, and the scores are the same."""

    def story(spec: str) -> list[Reply]:
        lm = scripted_language_model(story_scorer(24), stop_ids=(23,))
        return run(lm, 1, spec, n=60, structured_outputs={"regex": "[ab]{3}[a-f]"})

    one, other = story(NAME), story(f"{NAME}(reuse=False)")
    assert [reply.token_ids for reply in one] == [reply.token_ids for reply in other]
    assert [reply.weight for reply in one] == pytest.approx([reply.weight for reply in other], rel=1e-4)
    assert one[0].stats.forwards < other[0].stats.forwards / 3


def test_places_that_are_not_learned_about_are_masked() -> None:
    """With one place nothing is learned, with all of them the dead end is."""
    lm = model()
    few = Counter(map(said, run(lm, 0, f"{NAME}(keep=request, nodes=1)", n=200)))
    assert few[DEAD_END] / 200 == pytest.approx(0.45, abs=0.1)
    assert Counter(map(said, run(lm, 0, f"{NAME}(keep=request)", n=200)))[DEAD_END] < 15


def test_warm_up_comes_before_what_is_given() -> None:
    lm = model()
    [reply] = run(lm, 0, f"{NAME}(keep=request, warmup=37, at_once=5)")
    assert told([reply])["draws"] == 38
    seeds = range(24)
    cold = sum(said(run(lm, seed, f"{NAME}(keep=request)")[0]) == DEAD_END for seed in seeds)
    warm = sum(said(run(lm, seed, f"{NAME}(keep=request, warmup=20)")[0]) == DEAD_END for seed in seeds)
    assert cold > 4
    assert warm < 3


def test_draws_at_once_read_the_same_bounds() -> None:
    """All of them have masking's law, since none has learned of the others."""
    lm = model()
    together = [said(reply) for seed in range(8) for reply in run(lm, seed, f"{NAME}(keep=request, at_once=50)", n=50)]
    assert together.count(DEAD_END) / 400 == pytest.approx(0.45, abs=0.1)
    assert run(lm, 0, f"{NAME}(keep=request, at_once=4)", n=4)[0].stats.rounds > 0


def test_dead_ends_are_left_and_counted() -> None:
    """With top_k=1 behind a the model writes b, which the language forbids there: the draw is made again."""
    lm = model()
    replies = run(lm, 0, f"{NAME}(keep=request)", n=40, top_p=0.9)
    assert all(said(reply)[0] == "b" for reply in replies)
    details = told(replies)
    assert details["dead"] > 0
    assert details["draws"] == 40 + details["dead"]
    assert details["mass_bound"] == pytest.approx(0.55, abs=1e-6)
    some = run(lm, 0, f"{NAME}(keep=request, at_once=8)", n=40, top_p=0.9)
    assert len({reply.token_ids[0] for reply in some}) == 1
    assert goodness_of_fit(Counter(map(said, [*replies, *some])), {
        text: mass for text, mass in POSTERIOR.items() if text != DEAD_END
    }).p_value > 0.001  # fmt: skip


def test_a_constraint_out_of_reach_is_an_error() -> None:
    with pytest.raises(ConstraintFailed, match="finds no text that structured_outputs allows"):
        run(model(), 0, structured_outputs={"regex": "a{3}"}, top_p=0.9)
    endless = scripted_language_model(TabularScorer(3, order=None, seed=1))
    with pytest.raises(ConstraintFailed, match="or let an end token end the output"):
        run(endless, 0, structured_outputs={"regex": "ab|ba"})


def test_a_text_that_is_cut_off_keeps_its_bound() -> None:
    """It is told as such; a longer one goes on from its place."""
    lm = model()
    short = run(lm, 0, n=30, max_new_tokens=2)
    assert {reply.finish_reason for reply in short} == {"length"}
    assert told(short)["mass_bound"] == pytest.approx(0.55 + 0.45 * 0.02, abs=1e-6)
    long = run(lm, 0, n=200)
    assert told(long)["draws_before"] == 30
    assert told(long)["mass_bound"] == pytest.approx(MASS, abs=1e-6)


def test_greedy_takes_the_likeliest_of_what_is_drawn_from() -> None:
    """Masking's text from a fresh trie; from a trie that has learned, the way around the dead end."""

    def law(prefix: Any) -> list[float]:
        output = list(prefix)[1:]
        if len(output) >= 5:
            return [0.0, 0.0, 1.0]
        return [0.02, 0.98, 0.0] if output and output[0] == 0 else [0.6, 0.4, 0.0]

    lm = scripted_language_model(TabularScorer(3, order=None, given=law), stop_ids=(2,))
    greedy = f"{NAME}(keep=request)"
    assert said(run(lm, 0, greedy, temperature=0.0)[0]) == DEAD_END
    assert said(run(lm, 0, "autoregressive", temperature=0.0)[0]) == DEAD_END
    [learned] = run(lm, 0, f"{NAME}(keep=request, warmup=40)", temperature=0.0)
    assert said(learned) == "baaaa"
    assert learned.weight == 1.0
    assert told([learned])["places"] > 30  # what comes before is drawn


def test_texts_in_any_tokens() -> None:
    """Bytes that must come may come in every token that begins them: the mass is of all of them."""
    lm = worded()
    replies = run(lm, 0, structured_outputs={"regex": "ab"}, n=200)
    assert {tuple(reply.token_ids) for reply in replies} == {(0, 1, 3), (2, 3)}
    exact = 0.2 * 0.4 * 0.1 + 0.3 * 0.1
    assert told(replies)["mass_bound"] == pytest.approx(exact, rel=1e-5)
    shares = Counter(tuple(reply.token_ids) for reply in replies[100:])
    assert goodness_of_fit(shares, {(0, 1, 3): 0.008 / exact, (2, 3): 0.03 / exact}).p_value > 0.001


def worded() -> SmallLanguageModel:
    """Tokens a, b, ab and the end."""

    class Words(LetterTokenizer):
        def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
            return "".join(("a", "b", "ab", "")[token] for token in token_ids)

        def token_bytes(self, token: int) -> bytes:
            return (b"a", b"b", b"ab", b"")[token]

        def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
            return ["ab".index(sign) if sign in "ab" else 0 for sign in text]

    def law(prefix: Any) -> list[float]:
        return [0.2, 0.4, 0.3, 0.1]

    return SmallLanguageModel(TabularScorer(4, order=None, given=law), Words(4), (3,))


def test_without_a_constraint_it_is_plain_sampling() -> None:
    lm = model()
    replies = run(lm, 4, structured_outputs=None, n=3)
    assert [reply.weight for reply in replies] == pytest.approx([1.0] * 3, abs=1e-6)
    assert told(replies)["draws_before"] == 0
    assert replies[0].token_ids == run(lm, 4, "autoregressive", structured_outputs=None)[0].token_ids
    assert told(run(lm, 5, f"{NAME}(keep=disk)", structured_outputs=None)).get("file") is None


def test_masses_that_vanish_in_float32_are_still_drawn_by() -> None:
    """Two allowed tokens beside one that is e^200 times as likely."""

    def law(prefix: Any) -> torch.Tensor:
        if len(prefix) > 1:
            return torch.tensor([-300.0, -300.0, -300.0, 0.0])
        return torch.tensor([-200.0, -201.0, 0.0, -300.0])

    lm = scripted_language_model(ScriptedScorer(law, 4), stop_ids=(3,))
    replies = run(lm, 0, structured_outputs={"regex": "a|b"}, n=400)
    shares = Counter(reply.token_ids[0] for reply in replies)
    assert shares[0] / 400 == pytest.approx(1 / (1 + math.exp(-1)), abs=0.1)
    assert math.log(told(replies)["mass_bound"]) == pytest.approx(-200 + math.log(1 + math.exp(-1)), rel=1e-3)


@pytest.mark.parametrize(
    ("spec", "settings", "message"),
    [
        (NAME, {"chance": "arithmetic"}, "does not run with chance arithmetic"),
        (NAME, {"xtc_probability": 0.5}, "does not run with xtc, which makes another law of each draw"),
        (f"{NAME}(keep=disk)", {"processors": [lambda ids, scores: scores]}, "use keep=memory"),
    ],
)
def test_what_cannot_be_is_refused(spec: str, settings: Any, message: str) -> None:
    with pytest.raises(Refused, match=message):
        run(model(), 0, spec, **settings)


def test_a_named_processor_may_be_kept_on_disk() -> None:
    settings: Any = {"processors": [{"name": "forbidden-tokens", "token_ids": [0]}]}
    replies = run(model(), 0, f"{NAME}(keep=disk)", n=20, **settings)
    assert {said(reply) for reply in replies} == {"bbbbb"}
    assert told(run(model(), 0, f"{NAME}(keep=disk)", **settings))["draws_before"] == 20


def test_memory_is_that_of_the_prompt_and_of_the_draws() -> None:
    lm = model()
    spec = GrammarAlignedDecoding(at_once=5)
    request = lm.prepare([0, 1, 1], spec, temperature=1.0, max_new_tokens=6).entries[0][0]
    assert [entry[1] for entry in spec.caches(request)] == [9] * 6


def test_check_decides_over_the_law(monkeypatch: pytest.MonkeyPatch) -> None:
    lm = model()
    report = check_method(lm, NAME, prompts=["a"], max_new_tokens=8)
    assert (report.passed, [part.name for part in report.parts]) == (True, ["bound", "law", "draws"])
    assert len(report.parts[0].numbers["bounds"]) == aligned_check.SINGLE + 2
    [part] = check_method(lm, f"{NAME}(nodes=3)", prompts=["a"], max_new_tokens=8).parts
    assert part.passed is None
    learn = Trie.learn
    with monkeypatch.context() as patch:
        patch.setattr(Trie, "learn", lambda trie, path: learn(trie, path[1:]))
        assert not check_method(lm, NAME, prompts=["a"], max_new_tokens=8).passed
    arrive = Trie.arrive
    monkeypatch.setattr(Trie, "arrive", lambda *given, **more: arrive(*given, **more)[::-1].copy())
    report = check_method(lm, NAME, prompts=["a"], max_new_tokens=8)
    assert {part.name: part.passed for part in report.parts}["draws"] is False
