"""decodery inside transformers' `generate`: what goes on from step to step and from call to call.

Streamers, stopping criteria and processors that keep something, caches that the caller keeps, and the model itself.
"""

from __future__ import annotations

import gc
import weakref
from functools import cache
from typing import Any

import pytest
import torch
from test_generate_arguments import assistant, same
from tiny_models import byte_level_tokenizer, make_model, random_ids, sentence_piece_tokenizer
from torch import Tensor
from transformers import (
    LogitsProcessor,
    MaxLengthCriteria,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
)

import decodery
from decodery.engine.autoregressive import Autoregressive
from decodery.engine.cost import CostCurve
from decodery.errors import BadSetting, MethodUnavailable
from decodery.language_model import LanguageModel
from decodery.speculative.draft_model import DraftModel
from decodery.speculative.prompt_lookup import PromptLookup

PAD = 98
every_method = pytest.mark.parametrize("method", ["autoregressive", "token-recycling"])


@cache
def model_of(family: str = "llama", vocabulary: int = 99) -> Any:
    model = make_model(family, vocab_size=vocabulary)
    model.generation_config.pad_token_id = PAD
    return model


def batch() -> dict[str, Tensor]:
    """Three prompts of different lengths, padded on the left."""
    rows = [random_ids(length, length, PAD) for length in (9, 4, 6)]
    ids = torch.tensor([[PAD] * (9 - len(row)) + row for row in rows])
    return {"input_ids": ids, "attention_mask": (torch.arange(9) >= torch.tensor([[0], [5], [3]])).long()}


def text(length: int = 8, seed: int = 2) -> dict[str, Tensor]:
    return {"input_ids": torch.tensor([random_ids(length, seed, PAD)])}


def ends(inputs: dict[str, Tensor], **arguments: Any) -> list[int]:
    """Tokens that end rows of a batch at different places."""
    out = model_of().generate(**inputs, max_new_tokens=12, do_sample=False, **arguments)
    new = out[:, inputs["input_ids"].shape[1] :].tolist()
    return [new[0][2], *([new[1][5]] if len(new) > 1 else [])]


def run(method: Any, inputs: dict[str, Tensor], family: str = "llama", **arguments: Any) -> Any:
    arguments = {"max_new_tokens": 12, "do_sample": False, **arguments}
    loop = {} if method == "transformers" else {"custom_generate": decodery.transformers_generate(method)}
    return model_of(family).generate(**inputs, **loop, **arguments)


@pytest.fixture(autouse=True)
def _rows_cost_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """So all drafts are verified, whatever the machine is busy with, and nothing has to be measured."""
    monkeypatch.setattr(LanguageModel, "cost", lambda self, network: CostCurve.flat())


# Streamers


class Heard:
    """A streamer that notes what it hears."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def put(self, value: Tensor) -> None:
        self.heard.append(value.tolist())

    def end(self) -> None:
        self.heard.append("end")


@every_method
@pytest.mark.parametrize("inputs", [text(), batch()], ids=["one text", "batch"])
def test_a_streamer_hears_each_step(method: str, inputs: dict[str, Tensor]) -> None:
    ours, theirs = Heard(), Heard()
    for name, streamer in ((method, ours), ("transformers", theirs)):
        run(name, inputs, streamer=streamer, eos_token_id=ends(inputs))
    assert ours.heard == theirs.heard
    assert len(ours.heard) > 4


def test_a_streamer_of_text_prints_what_it_would(capsys: pytest.CaptureFixture[str]) -> None:
    tokenizer = byte_level_tokenizer()
    ids = torch.tensor([tokenizer.encode("the quick brown")])
    printed = []
    for loop in ({"custom_generate": decodery.transformers_generate()}, {}):
        streamer = TextStreamer(tokenizer, skip_prompt=True)
        model_of(vocabulary=330).generate(ids, streamer=streamer, max_new_tokens=20, do_sample=False, **loop)
        printed.append(capsys.readouterr().out)
    assert printed[0] == printed[1]
    assert len(printed[0]) > 10


def test_tokens_are_streamed_as_they_come() -> None:
    """The first tokens are heard before the last are decoded."""
    criterion = Count(limit=99)
    calls: list[int] = []

    class Watching(Heard):
        def put(self, value: Tensor) -> None:
            calls.append(criterion.calls)

    run("autoregressive", text(), streamer=Watching(), stopping_criteria=[criterion])
    assert calls == list(range(13))


def test_an_error_of_a_streamer_comes_through_and_leaves_the_loop_usable() -> None:
    class Broken(Heard):
        def put(self, value: Tensor) -> None:
            super().put(value)
            if len(self.heard) == 3:
                raise BrokenPipeError("nobody reads")

    loop = decodery.transformers_generate("token-recycling")
    before = model_of().generate(**text(), custom_generate=loop, max_new_tokens=12, do_sample=False)
    with pytest.raises(BrokenPipeError):
        model_of().generate(**text(), custom_generate=loop, max_new_tokens=12, do_sample=False, streamer=Broken())
    assert torch.equal(model_of().generate(**text(), custom_generate=loop, max_new_tokens=12, do_sample=False), before)


# Stopping criteria


class Count(StoppingCriteria):  # type: ignore[misc]
    """Ends all rows at a certain call, and notes how it was called."""

    def __init__(self, limit: int):
        self.limit, self.calls, self.shapes = limit, 0, list[tuple[int, ...]]()

    def __call__(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        self.calls += 1
        self.shapes.append((*input_ids.shape, -1 if scores is None else len(scores)))
        return torch.full((len(input_ids),), self.calls >= self.limit)


@every_method
@pytest.mark.parametrize("scores", [False, True])
def test_criteria_that_keep_count_are_called_once_per_step(method: str, scores: bool) -> None:
    extra = {"output_scores": True, "return_dict_in_generate": True} if scores else {}
    found, results = [], []
    for name in (method, "transformers"):
        criterion = Count(limit=7)
        results.append(run(name, batch(), stopping_criteria=[criterion], eos_token_id=ends(batch()), **extra))
        found.append(criterion.shapes)
    assert found[0] == found[1]
    assert len(found[0]) == 7
    same(*results, seen=batch()["attention_mask"].bool())


@every_method
@pytest.mark.parametrize("eos", [False, True])
def test_criteria_end_rows_one_by_one(method: str, eos: bool) -> None:
    """Without end tokens a row that is over goes on with tokens of its own until all are over, as in `generate`."""

    def one_after_the_other(input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        return torch.tensor([input_ids.shape[1] == 9 + 2 * (row + 1) for row in range(len(input_ids))])

    extra = {"stopping_criteria": [one_after_the_other], "eos_token_id": PAD - 1 if eos else None}
    ours, theirs = (run(name, batch(), **extra) for name in (method, "transformers"))
    assert torch.equal(ours, theirs)
    assert ours.shape[1] == 9 + 6
    assert (PAD in ours[0, 9:].tolist()) == eos


def test_a_longest_length_of_the_callers_own_holds() -> None:
    """`generate` takes such a criterion in place of its own, so it may allow more than max_new_tokens."""
    for longest in (9, 20, 30):
        criteria = StoppingCriteriaList([MaxLengthCriteria(longest)])
        ours, theirs = (run(name, text(), stopping_criteria=criteria) for name in (None, "transformers"))
        assert torch.equal(ours, theirs)
        assert ours.shape[1] == longest


@every_method
def test_a_batch_in_which_a_row_fails_fails_whole(method: str) -> None:
    """As in `generate`, which knows of no results of single rows."""

    def broken(input_ids: Tensor, scores: Tensor) -> Tensor:
        if input_ids.shape[1] > 11:
            raise ZeroDivisionError
        return scores

    with pytest.raises(ZeroDivisionError):
        run(method, batch(), logits_processor=[broken])


@every_method
def test_time_may_run_out(method: str) -> None:
    assert run(method, batch(), max_time=0.0).shape[1] == 10


# Processors


class ByRow(LogitsProcessor):  # type: ignore[misc]
    """Forbids each row of the batch something else."""

    def __init__(self, forbidden: Tensor):
        self.forbidden = forbidden

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        return scores.scatter(1, self.forbidden, -torch.inf)


class Following(LogitsProcessor):  # type: ignore[misc]
    """Favours a token by how often it was called, which no draft can keep."""

    def __init__(self, kind: str):
        self.kind, self.calls, self.seen, self.sums = kind, 0, list[int](), torch.zeros(1)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        place = {"calls": self.calls, "seen": len(self.seen), "sums": int(self.sums)}[self.kind]
        if self.kind == "calls":
            self.calls += 1
        elif self.kind == "seen":
            self.seen.append(1)
        else:
            self.sums += 1
        scores[:, 10 + place] += 100
        return scores


class Lazy(LogitsProcessor):  # type: ignore[misc]
    """Makes something at its first call, and keeps it."""

    def __init__(self) -> None:
        self.bias: Tensor | None = None
        self.name = "lazy"

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if self.bias is None:
            self.bias = torch.linspace(0, 5, scores.shape[1])
        self.name = "".join(["la", "zy"])
        return scores + self.bias


@every_method
def test_processors_may_hold_something_of_each_row(method: str) -> None:
    first = run("transformers", batch())[:, 9:12]
    processors = [ByRow(first)]
    ours, theirs = (run(name, batch(), logits_processor=processors) for name in (method, "transformers"))
    assert torch.equal(ours, theirs)
    assert not torch.equal(ours[:, 9:12], first)


@pytest.mark.parametrize("kind", ["calls", "seen", "sums"])
def test_processors_that_follow_the_text_are_refused_unless_asked_in_order(kind: str) -> None:
    ours, theirs = (
        run(name, text(), logits_processor=[Following(kind)]) for name in ("autoregressive", "transformers")
    )
    assert torch.equal(ours, theirs)
    scores = {"output_scores": True, "return_dict_in_generate": True}
    for method, inputs, extra in (
        ("token-recycling", text(), {}),
        ("autoregressive", batch(), {}),
        ("autoregressive", text(), scores),
    ):
        with pytest.raises(BadSetting, match=f"Following changes its {kind}"):
            run(method, inputs, logits_processor=[Following(kind)], **extra)


@every_method
def test_processors_may_make_something_once(method: str) -> None:
    ours, theirs = (run(name, batch(), logits_processor=[Lazy()]) for name in (method, "transformers"))
    assert torch.equal(ours, theirs)


@every_method
@pytest.mark.parametrize(
    "arguments", [{"encoder_no_repeat_ngram_size": 1}, {"encoder_repetition_penalty": 3.0}], ids=str
)
def test_processors_of_transformers_that_hold_the_prompts(method: str, arguments: dict[str, Any]) -> None:
    ours, theirs = (run(name, batch(), **arguments) for name in (method, "transformers"))
    assert torch.equal(ours, theirs)


# Methods that the arguments mean


def meant(method: Any, monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> Any:
    """The method that decodes."""
    from decodery.engine.scheduler import Scheduler

    found: list[Any] = []
    submit = Scheduler.submit
    monkeypatch.setattr(
        Scheduler, "submit", lambda self, request, chosen: (found.append(chosen), submit(self, request, chosen))
    )
    run(method, text(), **arguments)
    return found[0]


def test_arguments_mean_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, expected in (
        ({}, "cascade"),
        ({"prompt_lookup_num_tokens": 5}, PromptLookup(length=5, max_ngram=2)),
        ({"prompt_lookup_num_tokens": 5, "max_matching_ngram_size": 4}, PromptLookup(length=5, max_ngram=4)),
        ({"assistant_early_exit": 1}, DraftModel(layers=1)),
    ):
        found = meant(None, monkeypatch, **arguments)
        assert expected in (found, found.name)
    for count, length in ((20, DraftModel().length), (7, 7)):
        found = meant(None, monkeypatch, assistant_model=assistant(), num_assistant_tokens=count)
        assert (found.name, found.draft, found.length) == ("draft-model", "assistant_model", length)
    assert meant("autoregressive", monkeypatch) == Autoregressive()
    assert meant("prompt-lookup(pick=last)", monkeypatch, prompt_lookup_num_tokens=6) == PromptLookup(
        pick="last", length=6, max_ngram=2
    )
    for method in ("spectr", "draft-model(width=2)", "recursive-speculative-decoding"):
        assert meant(method, monkeypatch, assistant_model=assistant()).draft == "assistant_model"


def test_the_draft_model_says_itself_how_much_it_drafts(monkeypatch: pytest.MonkeyPatch) -> None:
    drafting = make_model("llama", seed=3)
    drafting.generation_config.num_assistant_tokens = 2
    assert meant(None, monkeypatch, assistant_model=drafting).length == 2


@pytest.mark.parametrize(
    "method", ["token-recycling", "autoregressive", "prompt-lookup(length=4)", "draft-model(layers=1)"]
)
def test_arguments_that_mean_another_method_are_refused(method: str) -> None:
    with pytest.raises(
        BadSetting, match="prompt_lookup_num_tokens means the method prompt-lookup, and this loop was made"
    ):
        run(method, text(), prompt_lookup_num_tokens=3)


def test_a_draft_model_that_was_named_is_not_replaced() -> None:
    with pytest.raises(BadSetting, match="assistant_model means the method draft-model"):
        run("draft-model(draft=ngram)", text(), assistant_model=assistant())


def test_the_model_may_draft_for_itself() -> None:
    """As its own assistant everything is accepted: a round brings the drafted tokens and one more."""
    ours = run(None, text(), assistant_model=model_of())
    assert torch.equal(ours, run("transformers", text()))


def test_draft_models_of_another_vocabulary_are_refused_before_work() -> None:
    drafting = make_model("llama", vocab_size=120)
    arguments = {"assistant_model": drafting, "tokenizer": byte_level_tokenizer()}
    with pytest.raises((ValueError, MethodUnavailable), match="tokenizer"):
        run(None, text(), **arguments)


def test_a_draft_model_with_another_tokenizer_drafts_or_is_refused() -> None:
    own, other = byte_level_tokenizer(), sentence_piece_tokenizer()
    drafting = make_model("llama", vocab_size=len(other))
    model = model_of(vocabulary=330)
    arguments: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False}
    tokenizers = {"tokenizer": own, "assistant_tokenizer": other}
    loop = decodery.transformers_generate()
    try:
        ours = model.generate(**text(), custom_generate=loop, assistant_model=drafting, **tokenizers, **arguments)
    except MethodUnavailable:
        return
    assert torch.equal(ours, model.generate(**text(), **arguments))


# The model


def test_the_model_is_left_as_it_was_also_after_an_error() -> None:
    model = make_model("llama")
    model.train()
    model.model.layers[1].eval()
    modules = {name: (id(module), module.training) for name, module in model.named_modules()}
    described, generation = model.config.to_dict(), model.generation_config.to_dict()

    def broken(input_ids: Tensor, scores: Tensor) -> Tensor:
        raise ZeroDivisionError

    for extra in ({}, {"logits_processor": [broken]}, {"assistant_model": model, "num_assistant_tokens": 2}):
        loop = decodery.transformers_generate()
        try:
            model.generate(**text(), custom_generate=loop, max_new_tokens=4, do_sample=False, **extra)
        except ZeroDivisionError:
            assert "logits_processor" in extra
        assert {name: (id(module), module.training) for name, module in model.named_modules()} == modules
        assert model.config.to_dict() == described
        assert model.generation_config.to_dict() == generation
        assert model.config._attn_implementation == "eager"
        assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_nothing_is_dropped_at_random_while_it_decodes() -> None:
    model = make_model("gpt2", attn_pdrop=0.5, embd_pdrop=0.5, resid_pdrop=0.5)
    expected = model.generate(**text(), max_new_tokens=8, do_sample=False)
    model.train()
    loop = decodery.transformers_generate("token-recycling")
    assert torch.equal(model.generate(**text(), custom_generate=loop, max_new_tokens=8, do_sample=False), expected)


def test_a_loop_keeps_no_model_alive() -> None:
    loop = decodery.transformers_generate()
    model, drafting = make_model("llama"), make_model("llama", seed=1)
    for extra in ({"assistant_model": drafting}, {"prompt_lookup_num_tokens": 2}, {}):
        model.generate(**text(), custom_generate=loop, max_new_tokens=8, do_sample=False, **extra)
    dead = [weakref.ref(model), weakref.ref(drafting)]
    del model, drafting, extra
    gc.collect()
    assert [reference() for reference in dead] == [None, None]


def test_the_draft_model_of_each_call_drafts() -> None:
    loop, passes = decodery.transformers_generate(), []
    for seed in (1, 2):
        drafting = make_model("llama", seed=seed)
        drafting.register_forward_hook(lambda *_, seed=seed: passes.append(seed))
        model_of().generate(**text(), custom_generate=loop, max_new_tokens=6, do_sample=False, assistant_model=drafting)
    assert passes.count(1) > 4
    assert passes.count(2) > 4


def test_a_model_that_changes_between_calls_is_seen_as_it_is() -> None:
    loop = decodery.transformers_generate("token-recycling")
    model = make_model("llama")

    def both() -> None:
        arguments: dict[str, Any] = {**text(), "max_new_tokens": 8, "do_sample": False}
        assert torch.equal(model.generate(custom_generate=loop, **arguments), model.generate(**arguments))

    both()
    model.double()
    both()
    model.float()
    model.resize_token_embeddings(120, mean_resizing=False)
    both()
    with torch.no_grad():
        model.lm_head.weight.copy_(model.lm_head.weight.flip(0))
    both()


def test_what_a_method_learns_is_kept_from_call_to_call() -> None:
    loop = decodery.transformers_generate("token-recycling")
    drafted = []
    for _ in range(2):
        heard = Count(limit=99)
        passes = 0

        def count(*_: Any) -> None:
            nonlocal passes
            passes += 1

        handle = model_of().register_forward_hook(count)
        arguments: dict[str, Any] = {"max_new_tokens": 40, "do_sample": False, "stopping_criteria": [heard]}
        model_of().generate(**text(), custom_generate=loop, **arguments)
        handle.remove()
        drafted.append(passes)
    assert drafted[1] < drafted[0]


def test_greedy_decoding_draws_nothing() -> None:
    state = torch.get_rng_state()
    run(None, text())
    assert torch.equal(torch.get_rng_state(), state)
