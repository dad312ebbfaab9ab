"""Kangaroo: its law, what it drafts and when it stops, that no row passes a layer twice, and what the adapter has read."""

from __future__ import annotations

from collections.abc import Generator
from collections.abc import Sequence as Listing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from toy_adapters import Passing

from decodery.engine.events import Drafted
from decodery.engine.settings import Settings
from decodery.errors import MethodUnavailable
from decodery.language_model import LanguageModel
from decodery.models.forward import POST_NORM, Forward
from decodery.speculative.kangaroo import method as kangaroo
from decodery.speculative.kangaroo.adapter import SHAPE, WEIGHTS, Adapter, empty_adapter, shape_of, shipped
from decodery.speculative.kangaroo.drafter import KangarooDrafter, Voice
from decodery.testing import DrafterLaws, toy_language_model, watched
from decodery.testing.outputs import finished, new_request

LAYERS = 4
EXIT = 2


class TestLaws(DrafterLaws):
    methods = ("kangaroo(length=3, threshold=0.3)", "kangaroo(length=2, threshold=0, rest=false)")
    samples = 1000

    @pytest.fixture(autouse=True)
    def _adapters(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The scorers of these laws have rows, but no layers that an adapter could be trained for."""
        found = Adapter({}, 1, {"hidden_size": 2}, torch.arange(0), "", {})
        monkeypatch.setattr(kangaroo.Kangaroo, "_adapter", lambda self, request: found)

        def voice(self: Any, request: Any) -> Voice:
            network = request.host.network
            return request.remember(
                ("voice",),
                lambda: Voice(Passing(network.hidden), network.head(None, normed=False), None, network.vocabulary),
                everywhere=True,
            )

        monkeypatch.setattr(kangaroo.Kangaroo, "_voice", voice)


@pytest.fixture(scope="module")
def lm() -> LanguageModel:
    return toy_language_model(seed=1, layers=LAYERS)


def random_adapter(lm: LanguageModel, seed: int = 0, **changed: Any) -> Adapter:
    torch.manual_seed(seed)
    shape = shape_of(lm.network.model.config)  # type: ignore[attr-defined]
    model = empty_adapter(shape)
    weights = {
        name: model.get_parameter(place).detach() * (1 if "norm" in name else 20) for name, place in WEIGHTS.items()
    }
    tokens = torch.arange(0, lm.network.vocabulary, 2)
    facts = {
        "weights": weights,
        "exit": EXIT,
        "shape": shape,
        "tokens": tokens,
        "fingerprint": lm.network.fingerprint(),
    }
    return Adapter(**{**facts, "facts": {"seed": seed}, **changed})


@pytest.fixture(scope="module")
def folder(lm: LanguageModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("adapter")
    random_adapter(lm).write(place)
    return place


PROMPTS = ("hello", "a b c", "no", "tell me more")


@pytest.mark.parametrize("vocabulary", ["all", "frequent"])
@pytest.mark.parametrize("rest", ["true", "false"])
def test_greedy_text_is_that_of_plain_decoding(lm: LanguageModel, folder: Path, vocabulary: str, rest: str) -> None:
    spec = f"kangaroo(adapter='{folder}', vocabulary={vocabulary}, threshold=0, length=3, rest={rest})"
    plain = lm.generate(list(PROMPTS), "autoregressive", max_new_tokens=40)
    together = lm.generate(list(PROMPTS), spec, max_new_tokens=40)
    alone = [lm.generate(prompt, spec, max_new_tokens=40) for prompt in PROMPTS]
    assert [reply.token_ids for reply in plain] == [reply.token_ids for reply in together]
    assert [reply.token_ids for reply in plain] == [reply.token_ids for reply in alone]
    assert rest == "true" or all(reply.stats.drafted > 0 for reply in alone)


def drafts(lm: LanguageModel, spec: str, prompt: str = "hello", tokens: int = 40, **settings: Any) -> list[int]:
    """How many tokens each round drafted."""
    asked = Settings(max_new_tokens=tokens, ignore_eos=True, **settings)
    request, chosen = new_request(lm, spec, lm.tokenize(prompt), asked)
    finished(request, chosen)
    return [len(event.tokens) for event in request.events if isinstance(event, Drafted)]


def test_what_ends_a_draft(lm: LanguageModel, folder: Path) -> None:
    """The token that was not sure is drafted itself. From one text, a draft is no longer where the threshold is higher."""
    spec = "kangaroo(adapter='{}', vocabulary=all, rest=false, length={}, threshold={})"
    assert set(drafts(lm, spec.format(folder, 5, 1.1))) - {0} == {1}
    assert set(drafts(lm, spec.format(folder, 3, 0))[:-4]) == {3}
    assert set(drafts(lm, spec.format(folder, 0, 0))) <= {0}
    first = [drafts(lm, spec.format(folder, 6, eta / 10))[0] for eta in range(11)]
    assert first == sorted(first, reverse=True)
    assert len(set(first)) > 2


class Watched:
    """Rows that every layer evaluates, the adapter's too."""

    def __init__(self) -> None:
        self.rows: dict[int, int] = {}

    def __call__(self, forward: Forward) -> None:
        for layer in forward.layers.indices(LAYERS):
            self.rows[layer] = self.rows.get(layer, 0) + forward.count


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_each_row_passes_each_layer_once(lm: LanguageModel, folder: Path, temperature: float) -> None:
    spec = f"kangaroo(adapter='{folder}', vocabulary=all, threshold=0.2, length=4, rest=false)"
    request, chosen = new_request(
        lm, spec, lm.tokenize("tell me"), Settings(max_new_tokens=60, temperature=temperature, seed=3, ignore_eos=True)
    )
    seen = Watched()
    with watched(lm.network, seen):
        finished(request, chosen)
    assert len(set(seen.rows.values())) == 1
    assert set(seen.rows) == set(range(LAYERS))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_adapter_has_read_every_row_once(
    lm: LanguageModel, folder: Path, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each round its cache holds the rows of the text but for those not read yet, of which there is one where the whole
    draft was accepted, and its newest row is what the adapter makes of all rows of the text at once."""
    adapter = Adapter.read(folder)
    model = empty_adapter(adapter.shape)
    with torch.no_grad():
        for name, weight in adapter.weights.items():
            model.get_parameter(WEIGHTS[name]).copy_(weight)
    rounds: list[tuple[int, int]] = []
    said: list[tuple[list[int], Tensor]] = []
    observe, grow = KangarooDrafter.observe, KangarooDrafter._grow

    def observed(self: KangarooDrafter, round: Any) -> None:
        observe(self, round)
        assert self._sequence is not None
        unread = sum(map(len, self.unread))
        assert self._own.length + unread == self._sequence.length
        assert self._own.positions == list(range(self._own.length))
        accepted = len(round.verdict.path)
        assert unread == (1 if accepted == len(round.draft) else 0)
        rounds.append((len(round.draft), accepted))

    def grown(self: KangarooDrafter, tokens: Listing[int], length: int) -> Generator[Any, Any, Any]:
        steps, answer = grow(self, tokens, length), None
        drafted: list[int] = []
        while True:
            try:
                ask = steps.send(answer)
            except StopIteration as stop:
                return stop.value
            answer = yield ask
            if ask.sequence is self._own:
                text = [*tokens, *drafted]
                said.append((text, answer.hidden[POST_NORM][-1].clone()))
                scores = self._voice.scores(answer.hidden[POST_NORM][-1:])
                drafted.append(int(scores.argmax()))

    monkeypatch.setattr(KangarooDrafter, "observe", observed)
    monkeypatch.setattr(KangarooDrafter, "_grow", grown)
    spec = f"kangaroo(adapter='{folder}', vocabulary=all, threshold=0.1, length=3, rest=false)"
    settings = Settings(max_new_tokens=60, temperature=temperature, seed=5, ignore_eos=True)
    request, chosen = new_request(lm, spec, lm.tokenize("a b c"), settings)
    finished(request, chosen)
    assert len({accepted for _, accepted in rounds}) > 1
    if temperature:
        return  # the tokens of a draft are drawn
    for text, row in said:
        [scores] = lm.network.run([Forward(lm.network.new_sequence(), text, taps=(EXIT - 1,))])
        with torch.no_grad():
            whole = model.base_model(inputs_embeds=scores.hidden[EXIT - 1][None], use_cache=False).last_hidden_state
        assert torch.allclose(row, whole[0, -1], atol=1e-4)


def test_rows_are_read_later_where_rounds_draft_nothing(lm: LanguageModel, folder: Path) -> None:
    request, chosen = new_request(lm, f"kangaroo(adapter='{folder}', length=2)", lm.tokenize("no"), Settings())
    drafter = chosen.drafter(request)  # type: ignore[attr-defined]
    sequence = request.new_sequence()
    drafter.begin(sequence)
    for tokens in ([5, 6, 7], [8]):
        asking = drafter.score(sequence, tokens, kangaroo_nothing())
        [scores] = lm.network.run([next(asking)])
        with pytest.raises(StopIteration):
            asking.send(scores)
    assert [len(rows) for rows in drafter.unread] == [3, 1]
    asking = drafter.propose([5, 6, 7, 8, 9], 2)
    [scores] = lm.network.run([next(asking)])
    ask = asking.send(scores)
    assert ask.sequence is drafter._own
    assert ask.count == 5


def kangaroo_nothing() -> Any:
    from decodery.speculative.draft import EMPTY

    return EMPTY


def test_drafts_of_frequent_tokens(lm: LanguageModel, folder: Path) -> None:
    request, chosen = new_request(
        lm, f"kangaroo(adapter='{folder}', rest=false)", lm.tokenize("no"), Settings(max_new_tokens=30)
    )
    finished(request, chosen)
    seen = [token for event in request.events if isinstance(event, Drafted) for token in event.tokens]
    assert seen
    assert all(token % 2 == 0 for token in seen)


def test_an_adapter_is_kept_and_read_again(lm: LanguageModel, tmp_path: Path) -> None:
    made = random_adapter(lm, seed=4)
    made.write(tmp_path)
    found = Adapter.read(tmp_path)
    assert (found.exit, found.shape, found.fingerprint, found.facts) == (
        EXIT,
        made.shape,
        made.fingerprint,
        {"seed": 4},
    )
    assert torch.equal(found.tokens, made.tokens)
    for name, weight in made.weights.items():
        assert torch.equal(found.weights[name], weight.bfloat16())
    assert set(found.shape) == set(SHAPE)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"fingerprint": "0123"}, "was trained for the model 0123, and"),
        ({"exit": LAYERS}, f"behind layer {LAYERS}; "),
        ({"exit": 0}, "behind layer 0; "),
        ({"shape": {"hidden_size": 8}}, "reads rows of 8 numbers"),
    ],
)
def test_an_adapter_of_another_model(lm: LanguageModel, changed: dict[str, Any], said: str, tmp_path: Path) -> None:
    random_adapter(lm, **changed).write(tmp_path)
    with pytest.raises(MethodUnavailable, match=said):
        lm.generate("no", f"kangaroo(adapter='{tmp_path}')")


def test_no_adapter(lm: LanguageModel, tmp_path: Path) -> None:
    with pytest.raises(MethodUnavailable, match="no adapter is shipped for"):
        lm.generate("no", "kangaroo")
    with pytest.raises(MethodUnavailable, match="holds no adapter of kangaroo"):
        lm.generate("no", f"kangaroo(adapter='{tmp_path}')")
    assert shipped("nobody's") is None
