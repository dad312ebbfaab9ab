"""AdaDec: where it pauses, what it decides there against a search by brute force, what it costs, and when it is greedy."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from decodery.engine.registry import method as as_method
from decodery.engine.settings import Settings
from decodery.errors import BadParameter, Refused
from decodery.models.catalogue import ARTIFACTS
from decodery.models.forward import Forward
from decodery.replies import Reply
from decodery.search.adadec import ends_function, shipped_threshold
from decodery.testing import (
    LetterTokenizer,
    MethodLaws,
    ScriptedScorer,
    SmallLanguageModel,
    TabularScorer,
    scripted_language_model,
    story_scorer,
    toy_language_model,
    watched,
)
from decodery.testing.outputs import new_request

PIECES = ("x", "y", "\n", "    ", "z", "=", "return", "Human")


class Code(LetterTokenizer):
    def __init__(self) -> None:
        super().__init__(len(PIECES))

    def decode(self, token_ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        return "".join(PIECES[token] for token in token_ids)


def scorer_of(seed: int = 1, concentration: float = 0.6) -> TabularScorer:
    return TabularScorer(8, order=3, seed=seed, concentration=concentration)


def pauses_of(reply: Reply) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = reply.stats.details["pauses"]
    return found


class TestAdaDec(MethodLaws):
    methods = ("adadec", "adadec(threshold=0.3, candidates=2, lookahead=3, reuse=False)")
    deterministic = True

    def test_a_stop_token_ends_the_output_wherever_it_comes(self) -> None:
        """It ends continuations too, so that another token may come; but none behind it."""
        for method, lm, prompt, whole in self._runs():
            for token in dict.fromkeys(whole.token_ids[:6]):
                reply = lm.generate(prompt, method=method, max_new_tokens=12, stop_token_ids=[token])
                assert token not in reply.token_ids[:-1]
                assert (reply.finish_reason == "stop") is (reply.token_ids[-1] == token)


def test_without_pauses_or_a_look_ahead_it_is_greedy_decoding() -> None:
    lm, generator = scripted_language_model(story_scorer()), np.random.default_rng(1)
    prompts = [generator.integers(0, 24, 1 + place % 9).tolist() for place in range(100)]
    plain = lm.generate(prompts, "autoregressive", max_new_tokens=8)
    for spec in ("adadec(threshold=inf)", "adadec(threshold=0, lookahead=0)", "adadec(threshold=0, candidates=1)"):
        found = lm.generate(prompts, spec, max_new_tokens=8)
        assert [reply.token_ids for reply in found] == [reply.token_ids for reply in plain]


def by_hand(
    scorer: TabularScorer, text: list[int], stops: set[int], candidates: int, ahead: int
) -> tuple[int, list[float], list[int]]:
    """A pause, each continuation scored from its beginning."""
    law = scorer.law(text).float().double()
    scores, lengths = [], []
    order = sorted(range(8), key=lambda t: (-float(law[t]), t))[:candidates]
    for first in order:
        total, tail = float(law[first].log()), [first]
        while tail[-1] not in stops and len(tail) <= ahead:
            own = scorer.law([*text, *tail]).float()
            tail.append(int(own.argmax()))
            total += float(own[tail[-1]].log())
        scores.append(total / len(tail))
        lengths.append(len(tail) - 1)
    return order[scores.index(max(scores))], scores, lengths


@pytest.mark.parametrize(("candidates", "ahead", "threshold"), [(3, 5, 1.0), (2, 3, 0.4), (5, 9, 1.6), (3, 1, 1.2)])
def test_pauses_are_decided_as_by_brute_force(candidates: int, ahead: int, threshold: float) -> None:
    unequal = 0
    for seed in range(6):
        scorer = scorer_of(seed)
        lm = scripted_language_model(scorer, stop_ids=(7,))
        spec = f"adadec(threshold={threshold}, candidates={candidates}, lookahead={ahead})"
        reply = lm.generate([1, 2, 3], spec, max_new_tokens=40)
        told = {pause["position"]: pause for pause in pauses_of(reply)}
        text = [1, 2, 3]
        for token in reply.token_ids:
            law = scorer.law(text)
            entropy = float(torch.special.entr(law).sum())
            assert (len(text) in told) is (entropy >= threshold) or abs(entropy - threshold) < 1e-4
            if len(text) in told:
                pause = told[len(text)]
                chosen, scores, lengths = by_hand(scorer, text, {7}, candidates, ahead)
                assert pause["entropy"] == pytest.approx(entropy, abs=1e-5)
                assert pause["lengths"] == lengths
                assert pause["scores"] == pytest.approx(scores, abs=1e-5)
                assert token == chosen == pause["chosen"]
                if len(set(lengths)) == 1:  # the length decides nothing then
                    assert pause["candidates"][int(np.argmax(pause["sums"]))] == token
                else:
                    unequal += 1
            else:
                assert token == int(law.argmax())
            text.append(token)
        assert told
    assert unequal or ahead == 1


@pytest.mark.parametrize("spec", ["", "reuse=False", "lookahead=2", "mode=reference", "threshold=0.2, candidates=2"])
def test_what_it_costs(spec: str) -> None:
    """A pass a step, prompt included, and as many as the longest continuation a pause; but for those whose scores are there."""
    for seed in range(4):
        lm = scripted_language_model(scorer_of(seed), stop_ids=(7,))
        reply = lm.generate([1, 2, 3], f"adadec({spec})", max_new_tokens=30)
        details, stats = reply.stats.details, reply.stats
        asked = sum(pause["asked"] for pause in pauses_of(reply))
        if "reference" not in spec:
            assert asked == sum(max(pause["lengths"]) for pause in pauses_of(reply))
        assert details["steps"] == len(reply.token_ids)
        assert stats.forwards == details["steps"] + asked - details["reused"]
        assert (details["reused"] > 0) is ("False" not in spec)


def test_what_it_keeps() -> None:
    """The text, and each candidate's with its look ahead."""
    lm = scripted_language_model(scorer_of())
    request, method = new_request(lm, "adadec(candidates=2, lookahead=7)", [1, 2, 3], Settings(max_new_tokens=10))
    assert [rows for _, rows in method.caches(request)] == [13, 20, 20]
    assert {network for network, _ in method.caches(request)} == {lm.network}


def test_it_does_not_look_beyond_the_context() -> None:
    scorer, longest = scorer_of(), 0
    scorer.context = 12
    lm = scripted_language_model(scorer)

    def note(forward: Forward) -> None:
        nonlocal longest
        longest = max(longest, forward.sequence.length + forward.count)

    with watched(scorer, note):
        reply = lm.generate([1, 2, 3], "adadec(threshold=0)", max_new_tokens=9)
    asked = {pause["position"]: pause["asked"] for pause in pauses_of(reply)}
    assert asked == {position: min(5, 12 - position - 1) for position in range(3, 12)}
    assert longest == 11, "the last token of the context is written and not fed"


def test_at_a_threshold_of_0_it_pauses_even_where_it_is_certain() -> None:
    scorer = ScriptedScorer(lambda prefix: [0.0, -float("inf"), -float("inf")], 3)
    [pause] = pauses_of(scripted_language_model(scorer).generate([1], "adadec(threshold=0)", max_new_tokens=1))
    assert (pause["entropy"], pause["candidates"]) == (0.0, [0])


def test_scores_that_are_used_again_change_nothing() -> None:
    for seed in range(3):
        lm = scripted_language_model(scorer_of(seed), stop_ids=(7,))
        replies = [
            lm.generate([1, 2, 3], f"adadec(threshold=0.8, reuse={reuse})", max_new_tokens=30, logprobs=0)
            for reuse in (True, False)
        ]
        assert replies[0].token_ids == replies[1].token_ids
        assert [t.raw for t in replies[0].logprobs] == pytest.approx([t.raw for t in replies[1].logprobs], abs=1e-5)
    lm = toy_language_model(layers=2)
    prompt = lm.encode("def total(numbers):")
    texts = [lm.generate(prompt, f"adadec(reuse={reuse})", max_new_tokens=32).token_ids for reuse in (True, False)]
    assert texts[0] == texts[1]


def test_the_entropy_is_that_of_the_model_and_what_is_forbidden_is_no_candidate() -> None:
    lm = scripted_language_model(scorer_of(3))
    free = lm.generate([1, 2], "adadec(threshold=0)", max_new_tokens=1)
    likeliest = pauses_of(free)[0]["candidates"][0]
    bound = lm.generate([1, 2], "adadec(threshold=0)", max_new_tokens=1, logit_bias={likeliest: -float("inf")})
    assert pauses_of(bound)[0]["entropy"] == pauses_of(free)[0]["entropy"]
    assert likeliest not in pauses_of(bound)[0]["candidates"]


def test_a_temperature_is_refused() -> None:
    with pytest.raises(Refused, match="adadec does not run with temperature: it is a deterministic rule"):
        scripted_language_model(scorer_of()).generate([1], "adadec", temperature=1.0)
    assert as_method("adadec").spec() == "adadec"


@pytest.mark.parametrize(
    ("text", "ended", "behind"),
    [
        ("    return x\n", False, False),
        ("    return x\ny", True, True),
        ("    return x\n\n\n", False, False),
        ("    return x\n\n\n\n", True, True),
        ("\tx\n    Human", False, True),
        ("x", True, True),
        ("", False, False),
    ],
)
def test_the_end_of_a_function(text: str, ended: bool, behind: bool) -> None:
    assert ends_function(text) is ended
    assert ends_function(text, behind=True) is behind


def code_model(seed: int = 0) -> SmallLanguageModel:
    return SmallLanguageModel(TabularScorer(8, order=3, seed=seed, concentration=0.6), Code())


def test_a_text_may_end_behind_a_function() -> None:
    ended = 0
    for seed in range(8):
        lm = code_model(seed)
        reply = lm.generate([3], "adadec(until=function)", max_new_tokens=30)
        free = lm.generate([3], "adadec", max_new_tokens=30)
        assert free.finish_reason == "length"
        if reply.finish_reason == "stop":
            ended += 1
            assert ends_function(reply.text, behind=True)
            assert not ends_function(lm.tokenizer.decode(reply.token_ids[:-1]), behind=True)
    assert ended > 4


def test_the_official_look_ahead_goes_on_behind_the_end() -> None:
    """It looks at no end token, and adds to the score of a continuation whose length it has frozen."""
    differ = 0
    for seed in range(10):
        lm = code_model(seed)
        lm.stop_ids = (5,)
        engine, reference = (
            lm.generate([3], f"adadec(threshold=0, until=function, mode={mode})", max_new_tokens=12)
            for mode in ("engine", "reference")
        )
        for pause in pauses_of(reference):
            assert pause["asked"] == 5
        differ += pauses_of(engine)[0]["scores"] != pauses_of(reference)[0]["scores"]
    assert differ > 3


class TestAdaDecWithBeams(TestAdaDec):
    methods = ("adadec(beams=2, threshold=1, candidates=2, lookahead=1)",)

    def test_max_new_tokens(self) -> None:
        """Another beam may be the best at another length."""
        for method, lm, prompt, _ in self._runs():
            for count in (1, 2, 3, 7):
                reply = lm.generate(prompt, method=method, max_new_tokens=count)
                assert (len(reply.token_ids), reply.finish_reason) == (count, "length")

    def test_a_stop_string_ends_the_output_wherever_it_comes(self) -> None:
        """It ends a beam, and another one may win."""
        for method, lm, prompt, whole in self._runs():
            stop = whole.text[2:5]
            reply = lm.generate(prompt, method=method, max_new_tokens=24, stop=stop)
            assert stop not in reply.text
            assert (reply.finish_reason == "stop") is (len(reply.token_ids) < 24)


def continued(
    scorer: TabularScorer, text: list[int], first: int, stops: set[int], beams: int, ahead: int
) -> tuple[float, int]:
    """The best sum and the longest length of so many continuations of a candidate."""
    kept = [([first], 0.0)]
    for _ in range(ahead):
        options = []
        for tail, total in kept:
            if tail[-1] in stops:
                options.append((tail, total))
                continue
            law = scorer.law([*text, *tail]).float().log()
            order = sorted(range(8), key=lambda t: -float(law[t]))[:beams]
            options += [([*tail, token], total + float(law[token])) for token in order]
        kept = sorted(options, key=lambda option: -option[1])[:beams]
    return max(total for _, total in kept), max(len(tail) for tail, _ in kept) - 1


def searched_by_hand(
    scorer: TabularScorer,
    prompt: list[int],
    stops: set[int],
    count: int,
    *,
    beams: int,
    threshold: float,
    ahead: int,
    scale: float = 1.0,
) -> tuple[list[int], float, int]:
    """The best text, its total, and how often a beam paused."""
    live: list[tuple[list[int], float]] = [([], 0.0)]
    finished: list[tuple[list[int], float]] = []
    paused = 0
    for _ in range(count):
        options = []
        for new, total in live:
            text = [*prompt, *new]
            law = scorer.law(text).float()
            order = sorted(range(8), key=lambda t: -float(law[t]))
            if float(torch.special.entr(law.double()).sum()) < threshold:
                options += [([*new, token], total + float(law[token].log())) for token in order]
                continue
            paused += 1
            for token in order[:3]:
                best, length = continued(scorer, text, token, stops, beams, ahead)
                options.append(([*new, token], total + scale * (float(law[token].log()) + best) / (length + 1)))
        options.sort(key=lambda option: -option[1])
        live = []
        for rank, (new, total) in enumerate(options):
            if len(live) == beams:
                break
            if new[-1] in stops or len(new) == count:
                if rank < beams:
                    finished.append((new, total))
            else:
                live.append((new, total))
        finished = sorted(finished, key=lambda entry: -entry[1])[:beams]
        if not live or (len(finished) == beams and live[0][1] <= finished[-1][1]):
            break
    return *finished[0], paused


@pytest.mark.parametrize(
    ("beams", "threshold", "ahead", "scale"), [(2, 1.0, 3, 1.0), (3, 0.6, 2, 1.0), (3, 1.2, 2, 2.5), (2, 0.0, 2, 1.0)]
)
def test_beams_pause_as_by_brute_force(beams: int, threshold: float, ahead: int, scale: float) -> None:
    single = 0
    for seed in range(4):
        scorer = scorer_of(seed)
        lm = scripted_language_model(scorer, stop_ids=(7,))
        spec = f"adadec(beams={beams}, threshold={threshold}, lookahead={ahead}, scale={scale})"
        reply = lm.generate([1, 2, 3], spec, max_new_tokens=10)
        text, total, paused = searched_by_hand(
            scorer, [1, 2, 3], {7}, 10, beams=beams, threshold=threshold, ahead=ahead, scale=scale
        )
        assert reply.token_ids == text
        assert reply.score == pytest.approx(total, abs=1e-4)
        assert len(pauses_of(reply)) == paused > 0
        steps: dict[int, int] = {}
        for pause in pauses_of(reply):
            steps[pause["position"]] = max(pause["asked"], steps.get(pause["position"], 0))
        assert reply.stats.forwards == reply.stats.details["steps"] + sum(steps.values())
        single += text == lm.generate([1, 2, 3], f"adadec(threshold={threshold})", max_new_tokens=10).token_ids
    assert single < 4


def test_beams_that_never_pause_are_beam_search() -> None:
    for seed in range(6):
        lm = scripted_language_model(scorer_of(seed), stop_ids=(7,))
        plain = lm.generate([1, 2, 3], "beam-search(beams=3, length_penalty=0)", max_new_tokens=12)
        found = lm.generate([1, 2, 3], "adadec(beams=3, threshold=inf)", max_new_tokens=12)
        assert found.token_ids == plain.token_ids
        assert found.score == pytest.approx(plain.score, abs=1e-5)
        assert found.stats.forwards == plain.stats.forwards


def test_beams_end_behind_a_function_too() -> None:
    ended = 0
    for seed in range(8):
        reply = code_model(seed).generate([3], "adadec(until=function, beams=2)", max_new_tokens=30)
        assert ends_function(reply.text, behind=True) is (reply.finish_reason == "stop")
        ended += reply.finish_reason == "stop"
    assert ended > 4


def test_the_threshold_is_that_of_the_model_where_one_ships(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = scripted_language_model(scorer_of(11))

    def threshold(spec: str) -> float:
        return float(lm.generate([1], spec, max_new_tokens=1).stats.details["threshold"])

    assert threshold("adadec") == 1.321
    assert threshold("adadec(threshold=0.5)") == 0.5
    card = {
        "fingerprint": lm.network.fingerprint(),
        "metrics": {"code": {"threshold": 1.7}, "prose": {"threshold": 2.6}},
    }
    (tmp_path / "adadec-scripted.json").write_text(json.dumps(card))
    monkeypatch.setattr("decodery.search.adadec.ARTIFACTS", tmp_path)
    lm.memory.clear()
    assert threshold("adadec") == 1.7
    assert threshold("adadec(learned=prose)") == 2.6
    assert threshold("adadec(threshold=0.5)") == 0.5
    with pytest.raises(BadParameter, match="learned"):
        threshold("adadec(threshold=0.5, learned=prose)")


def test_what_ships_is_the_default_model_s() -> None:
    [card] = [json.loads(path.read_text()) for path in ARTIFACTS.glob("adadec-*.json")]
    assert card["model"] == "smollm2-135m"
    for kind in ("code", "prose"):
        found = card["metrics"][kind]
        assert shipped_threshold(card["fingerprint"], kind) == found["threshold"]
        assert found["threshold"] == pytest.approx(
            (np.log(found["cut"] / (1 - found["cut"])) - found["intercept"]) / found["coefficient"]
        )
        assert found["tokens"] >= 20_000
    assert shipped_threshold("another", "code") is None
