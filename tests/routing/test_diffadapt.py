"""DiffAdapt: forced classes are plain requests, one probe call, no row twice, budgets, choices, and what does not fit."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from decodery.engine.settings import Settings
from decodery.errors import BadInput, BadParameter, MethodUnavailable, Refused
from decodery.models import catalogue
from decodery.models.forward import POST_NORM, Forward, Rows, Scores
from decodery.models.heads import HeadNetwork
from decodery.routing.diffadapt.method import DiffAdapt
from decodery.routing.diffadapt.strategies import CLASSES, Policy, Probe, Router, Strategy, choose, mean_entropy
from decodery.testing import toy_language_model, watched
from decodery.testing.outputs import new_request

QUESTION = "which of them is it"
POLICY = Policy(
    Strategy(" short", 0.5, 0.4), Strategy(" long", 0.8, 1.0), Strategy(" plan", 0.4, 0.5), "some examples; ", "\n\n"
)


@pytest.fixture(scope="module")
def lm() -> Any:
    return toy_language_model()


def probe_for(lm: Any, bias: Sequence[float], weight: float = 0.0) -> Probe:
    """A probe that says `bias` of every row, or something of each where weight is not 0."""
    torch.manual_seed(4)
    probe = Probe(lm.network.hidden, 6)
    with torch.no_grad():
        probe.second.weight.mul_(weight)
        probe.second.bias.copy_(torch.tensor(bias))
    return probe


@pytest.fixture
def folder(lm: Any, tmp_path: Path) -> Any:
    def made(bias: Sequence[float], weight: float = 0.0, policy: Policy = POLICY) -> str:
        Router(probe_for(lm, bias, weight), policy, lm.network.fingerprint()).write(tmp_path, {"seed": 0})
        return str(tmp_path)

    return made


def plain_ids(lm: Any, strategy: Strategy, question: str = QUESTION, policy: Policy = POLICY) -> list[int]:
    return [*lm.encode(policy.preamble), *lm.tokenize(question), *lm.encode(strategy.suffix)]


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("method", ["autoregressive", "prompt-lookup"])
def test_a_forced_class_is_the_plain_request_with_its_strategy(lm: Any, folder: Any, name: str, method: str) -> None:
    """By a probe that always says so, and by name: text, log probabilities and statistics of what follows."""
    bias = [9.0 * (name == one) for one in CLASSES]
    place, strategy = folder(bias), POLICY.of(name)
    for seed in range(6):
        wanted = lm.generate(
            plain_ids(lm, strategy),
            "autoregressive",
            temperature=strategy.temperature,
            max_new_tokens=strategy.budget(20),
            seed=seed,
            stop=["\n\n"],
            logprobs=2,
            repetition_penalty=1.3,
            top_p=0.9,
            ignore_eos=True,
        )
        for spec in (DiffAdapt(probe=place, method=method), DiffAdapt(probe=place, strategy=name, method=method)):
            found = lm.generate(
                QUESTION,
                spec,
                max_new_tokens=20,
                seed=seed,
                logprobs=2,
                repetition_penalty=1.3,
                top_p=0.9,
                ignore_eos=True,
            )
            assert found.token_ids == wanted.token_ids
            assert found.text == wanted.text
            assert [entry.processed for entry in found.logprobs] == pytest.approx(
                [entry.processed for entry in wanted.logprobs], abs=1e-4
            )
            assert found.stats.details["strategy"] == name
            assert found.stats.prompt_tokens == wanted.stats.prompt_tokens
            assert found.finish_reason == wanted.finish_reason
            assert len(found.token_ids) <= strategy.budget(20)
            assert found.stats.details["truncated"] == (found.finish_reason == "length")


def test_no_row_is_scored_twice_and_the_probe_is_asked_once(lm: Any, folder: Any) -> None:
    seen: list[tuple[int, tuple[int, ...]]] = []
    with watched(lm.network, lambda forward: seen.append((forward.sequence.length, tuple(forward.tokens)))):
        reply = lm.generate(QUESTION, DiffAdapt(probe=folder([0, 0, 9])), max_new_tokens=12, seed=1, ignore_eos=True)
    policy = POLICY
    neutral = [*lm.encode(policy.preamble), *lm.tokenize(QUESTION)]
    suffix = lm.encode(policy.hard.suffix)
    assert seen[0] == (0, tuple(neutral[:-1]))
    assert seen[1] == (len(neutral) - 1, (neutral[-1],))
    assert seen[2] == (len(neutral), tuple(suffix))  # after the probe: the strategy's suffix alone
    assert [len(tokens) for _, tokens in seen[3:]] == [1] * (len(reply.token_ids) - 1)
    assert reply.stats.models["diffadapt probe"].forwards == 1
    assert reply.stats.models["diffadapt probe"].rows == 1
    assert reply.stats.rounds == len(reply.token_ids)


def test_the_probe_sees_the_last_row_of_the_neutral_prompt(lm: Any, folder: Any) -> None:
    place = folder([0.1, 0.0, -0.1], weight=3.0)
    reply = lm.generate(QUESTION, DiffAdapt(probe=place), max_new_tokens=3, seed=1)
    ids = [*lm.encode(POLICY.preamble), *lm.tokenize(QUESTION)]
    [scores] = lm.network.run([Forward(lm.network.new_sequence(), ids, taps=(POST_NORM,), logits=Rows.NONE)])
    probe = Router.read(Path(place)).probe
    wanted = probe(scores.hidden[POST_NORM][-1:].float())[0].softmax(dim=-1).tolist()
    told = reply.stats.details["probabilities"]
    assert [told[name] for name in CLASSES] == pytest.approx(wanted, abs=1e-4)
    assert reply.stats.details["strategy"] == CLASSES[wanted.index(max(wanted))]
    other = lm.generate("another", DiffAdapt(probe=place), max_new_tokens=3, seed=1).stats.details["probabilities"]
    assert other["easy"] != pytest.approx(told["easy"], abs=1e-6)


def test_probes_of_several_requests_share_a_pass(lm: Any, folder: Any) -> None:
    place, sizes, run_pass = folder([0, 9, 0]), [], HeadNetwork.run_pass

    def counted(self: HeadNetwork, forwards: Sequence[Forward]) -> list[Scores]:
        sizes.append(len(forwards))
        return run_pass(self, forwards)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HeadNetwork, "run_pass", counted)
        replies = lm.generate(["one", "two", "six"], DiffAdapt(probe=place), max_new_tokens=8, seed=3)
    assert sum(sizes) == 3
    assert max(sizes) > 1
    alone = [lm.generate(text, DiffAdapt(probe=place), max_new_tokens=8, seed=3).token_ids for text in ("one", "two")]
    assert [reply.token_ids for reply in replies[:2]] == alone


def test_budgets_and_least_lengths(lm: Any) -> None:
    for name, share in (("easy", 0.4), ("normal", 1.0), ("hard", 0.5)):
        for most in (1, 7, 20):
            reply = lm.generate(
                QUESTION, f"diffadapt(strategy={name})", max_new_tokens=most, seed=2, ignore_eos=True, min_new_tokens=1
            )
            assert len(reply.token_ids) == max(1, int(share * most)) or reply.finish_reason == "stop"
    reply = lm.generate(QUESTION, "diffadapt(strategy=easy)", max_new_tokens=20, min_new_tokens=20, seed=2)
    assert len(reply.token_ids) == 8
    assert reply.stats.details["truncated"]
    assert reply.finish_reason == "length"


def test_stop_strings_of_both_sides_act(lm: Any, folder: Any) -> None:
    place = folder([0, 9, 0])
    whole = lm.generate(QUESTION, DiffAdapt(probe=place), max_new_tokens=20, seed=5, ignore_eos=True)
    piece = whole.text[3:5]
    assert piece
    cut = lm.generate(QUESTION, DiffAdapt(probe=place), max_new_tokens=20, seed=5, ignore_eos=True, stop=[piece])
    assert cut.finish_reason == "stop"
    assert cut.text == whole.text[: whole.text.index(piece)]
    own = Policy(POLICY.easy, POLICY.normal, POLICY.hard, POLICY.preamble, piece)
    Router(probe_for(lm, [0, 9, 0]), own, lm.network.fingerprint()).write(Path(place) / "own", {})
    method = DiffAdapt(probe=f"{place}/own")
    again = lm.generate(QUESTION, method, max_new_tokens=20, seed=5, ignore_eos=True)
    assert (again.finish_reason, again.text) == ("stop", cut.text)
    assert not again.stats.details["truncated"]


def test_memory_has_room_for_the_text_around_the_question(lm: Any, folder: Any) -> None:
    method = DiffAdapt(probe=folder([0, 9, 0]))
    request, _ = new_request(lm, method, lm.tokenize(QUESTION), Settings(max_new_tokens=10))
    longest = max(len(lm.encode(POLICY.of(name).suffix)) for name in CLASSES)
    around = len(lm.encode(POLICY.preamble)) + longest
    assert method.caches(request)[0][1] == len(lm.tokenize(QUESTION)) + 10 + around


@pytest.mark.parametrize(
    ("probabilities", "fallback", "wanted"),
    [
        ([0.5, 0.3, 0.2], 0.0, "easy"),
        ([0.2, 0.3, 0.5], 0.0, "hard"),
        ([0.4, 0.4, 0.2], 0.0, "normal"),
        ([0.4, 0.2, 0.4], 0.0, "hard"),
        ([1 / 3, 1 / 3, 1 / 3], 0.0, "normal"),
        ([0.5, 0.3, 0.2], 0.5, "easy"),
        ([0.5, 0.3, 0.2], 0.51, "normal"),
    ],
)
def test_the_likeliest_class_is_chosen(probabilities: list[float], fallback: float, wanted: str) -> None:
    assert choose(torch.tensor(probabilities, dtype=torch.float64), fallback) == wanted


def test_the_fallback_reaches_the_choice(lm: Any, folder: Any) -> None:
    place = folder([1.0, 0.0, 0.0])
    for fallback, wanted in ((0.0, "easy"), (0.9, "normal")):
        reply = lm.generate(QUESTION, DiffAdapt(probe=place, fallback=fallback), max_new_tokens=2, seed=1)
        assert reply.stats.details["strategy"] == wanted


def test_entropies() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(5, 40, generator=generator) * 3
    law = logits.double().softmax(dim=-1)
    assert mean_entropy(logits) == pytest.approx(float(-(law * law.log()).sum(dim=-1).mean()), abs=1e-5)
    one_hot = torch.full((2, 7), -float("inf"))
    one_hot[:, 3] = 0.0
    assert mean_entropy(one_hot) == 0.0
    assert mean_entropy(torch.zeros(3, 64)) == pytest.approx(math.log(64), abs=1e-9)


def test_probes_are_kept_with_their_policy(lm: Any, folder: Any) -> None:
    place = Path(folder([0.5, 0.25, 0.125], weight=1.0))
    read = Router.read(place)
    assert read.policy == POLICY
    assert read.fingerprint == lm.network.fingerprint()
    rows = torch.randn(4, lm.network.hidden)
    with torch.no_grad():
        assert torch.allclose(read.probe(rows), probe_for(lm, [0.5, 0.25, 0.125], 1.0)(rows), atol=1e-2)
    card = json.loads((place / "card.json").read_text())
    assert card["rows"] == "last layer, final norm"
    assert card["seed"] == 0


def test_what_ships_is_found_by_the_model(
    lm: Any, folder: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    Router(probe_for(lm, [0, 0, 9.0]), POLICY, lm.network.fingerprint()).write(tmp_path / "diffadapt-toy", {})
    monkeypatch.setattr(catalogue, "ARTIFACTS", tmp_path)
    own = toy_language_model()
    assert own.generate(QUESTION, "diffadapt", max_new_tokens=2).stats.details["strategy"] == "hard"


def test_probes_that_do_not_fit(lm: Any, folder: Any, tmp_path: Path) -> None:
    with pytest.raises(MethodUnavailable, match="there is no probe for"):
        lm.generate(QUESTION, "diffadapt", max_new_tokens=2)
    with pytest.raises(BadInput, match="holds no probe"):
        lm.generate(QUESTION, DiffAdapt(probe=str(tmp_path / "nowhere")), max_new_tokens=2)
    Router(probe_for(lm, [0, 0, 9.0]), POLICY, "another").write(tmp_path / "other", {})
    with pytest.raises(MethodUnavailable, match="was trained for the model another"):
        lm.generate(QUESTION, DiffAdapt(probe=str(tmp_path / "other")), max_new_tokens=2)


def test_what_is_refused(lm: Any) -> None:
    for setting, value, words in (
        ("temperature", 0.7, "each strategy has its own"),
        ("echo", True, "text of its own"),
        ("target", "guidance(scale=1.5)", "hidden rows of one model"),
        ("chance", "gumbel", "looks at the prompt"),
    ):
        with pytest.raises(Refused, match=words):
            lm.generate(QUESTION, "diffadapt(strategy=easy)", max_new_tokens=2, **{setting: value})
    for inner in ("best-of-n", "diffadapt(strategy=easy)"):
        with pytest.raises(BadParameter, match="cannot decode the answer"):
            DiffAdapt(strategy="easy", method=inner)


def test_the_token_that_texts_begin_with_stays_in_front(lm: Any, folder: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ids = lm.tokenize(QUESTION)
    seen: list[tuple[int, ...]] = []
    for start, wanted in ((ids[0], ids[:1]), (None, [])):
        monkeypatch.setattr(lm.tokenizer, "bos_token_id", start, raising=False)
        seen.clear()
        with watched(lm.network, lambda forward: seen.append(tuple(forward.tokens))):
            lm.generate(ids, DiffAdapt(probe=folder([0, 9, 0])), max_new_tokens=1)
        neutral = [*wanted, *lm.encode(POLICY.preamble), *ids[len(wanted) :]]
        assert seen[0] == tuple(neutral[:-1])
        lm.forget()


def test_only_fresh_requests_begin_again(lm: Any) -> None:
    request, _ = new_request(lm, "autoregressive", lm.tokenize(QUESTION), Settings(max_new_tokens=4))
    request.commit([5], [])
    with pytest.raises(ValueError, match="no tokens yet"):
        request.begin_again([1, 2], request.new_sequence())
