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
import transformers
from test_generate_arguments import assistant, same, same_cache
from tiny_models import byte_level_tokenizer, make_model, random_ids, sentence_piece_tokenizer
from torch import Tensor
from transformers import (
    DynamicCache,
    LogitsProcessor,
    MaxLengthCriteria,
    StaticCache,
    StoppingCriteria,
    StoppingCriteriaList,
    TextStreamer,
)

import decodery
from decodery.engine.autoregressive import Autoregressive
from decodery.engine.cost import CostCurve
from decodery.errors import BadSetting, MethodUnavailable
from decodery.language_model import LanguageModel
from decodery.speculative.drafters.draft_model import DraftModel
from decodery.speculative.drafters.prompt_lookup import PromptLookup

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


# Scores and caches


@every_method
def test_scores_of_rows_that_are_over_are_given_too(method: str) -> None:
    extra = {
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_logits": True,
        "repetition_penalty": 1.4,
        "eos_token_id": ends(batch(), repetition_penalty=1.4),
    }
    seen = batch()["attention_mask"].bool()
    for cached in (True, False):
        ours, theirs = (run(name, batch(), use_cache=cached, **extra) for name in (method, "transformers"))
        assert (ours.sequences[0, -3:] == PAD).all()
        same(ours, theirs, seen=seen)


@pytest.mark.parametrize("cached", [True, False])
def test_what_the_model_shows_is_cut_into_steps(cached: bool) -> None:
    extra = {"return_dict_in_generate": True, "output_hidden_states": True, "output_attentions": True}
    same(*(run(name, text(), use_cache=cached, **extra) for name in (None, "transformers")))
    longer = text(20)
    caches = [after(longer["input_ids"][:, :6]) for _ in range(2)]
    same(*(run(name, longer, cache=held, **extra) for name, held in zip((None, "transformers"), caches, strict=True)))


def test_the_scores_are_those_that_the_tokens_were_drawn_by() -> None:
    out = run("prompt-lookup", text(), do_sample=True, return_dict_in_generate=True, output_scores=True, top_k=3)
    for step, scores in enumerate(out.scores):
        assert scores[0].isfinite().sum() == 3
        assert scores[0, out.sequences[0, 8 + step]].isfinite()


@every_method
@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma3"])
def test_a_cache_goes_from_turn_to_turn(method: str, family: str) -> None:
    """Both loops on the same cache, in turns: what one leaves there the other goes on from."""
    own, other = DynamicCache(config=model_of(family).config), DynamicCache(config=model_of(family).config)
    inputs = text(20)
    for turn in range(3):
        ours = run(method, inputs, family, cache=own)
        theirs = run("transformers", inputs, family, cache=other)
        assert torch.equal(ours, theirs)
        same_cache(own, other)
        assert own.get_seq_length() == ours.shape[1] - 1
        if turn == 1:
            own, other = other, own
        inputs = {"input_ids": torch.cat([ours, text(5, turn)["input_ids"]], dim=1)}


def test_a_cache_may_keep_more_than_the_window_asks_for() -> None:
    """Made without a configuration, it keeps all rows of layers that look at the last ones alone."""
    own, other, inputs = DynamicCache(), DynamicCache(), text(20)
    for turn in range(2):
        ours = run(None, inputs, "gemma3", cache=own)
        assert torch.equal(ours, run("transformers", inputs, "gemma3", cache=other))
        inputs = {"input_ids": torch.cat([ours, text(5, turn)["input_ids"]], dim=1)}


@every_method
def test_a_cache_of_a_padded_batch_goes_on(method: str) -> None:
    own, other = DynamicCache(), DynamicCache()
    inputs, end = batch(), ends(batch())
    for _ in range(2):
        ours = run(method, inputs, cache=own, eos_token_id=end)
        theirs = run("transformers", inputs, cache=other, eos_token_id=end)
        assert torch.equal(ours, theirs)
        same_cache(own, other, batch()["attention_mask"].bool())
        more = torch.tensor([random_ids(3, row, PAD) for row in range(3)])
        ids = torch.cat([ours, more], dim=1)
        mask = torch.cat([batch()["attention_mask"], torch.ones(3, ids.shape[1] - 9, dtype=torch.long)], dim=1)
        inputs = {"input_ids": ids, "attention_mask": mask}


def test_an_empty_cache_of_another_kind_is_filled() -> None:
    found = []
    for name in ("token-recycling", "transformers"):
        own = StaticCache(config=model_of().config, max_cache_len=40)
        run(name, text(), cache=own)
        found.append(own)
    assert found[0].get_seq_length() == found[1].get_seq_length() == 19
    torch.testing.assert_close(found[0].layers[3].keys, found[1].layers[3].keys, rtol=1e-4, atol=1e-4)


def soft() -> DynamicCache:
    held = DynamicCache()
    with torch.no_grad():
        model_of()(inputs_embeds=torch.randn(1, 4, 32), cache=held)
    return held


def after(ids: Tensor, model: Any = None, **arguments: Any) -> DynamicCache:
    held = DynamicCache()
    with torch.no_grad():
        (model or model_of())(ids, cache=held, **arguments)
    return held


def changed(place: int) -> Tensor:
    ids = text()["input_ids"][:, :6].clone()
    ids[0, place] = (ids[0, place] + 1) % 90
    return ids


@pytest.mark.parametrize(
    "made",
    [
        soft,
        lambda: after(changed(0)),
        lambda: after(changed(5)),
        lambda: after(text()["input_ids"][:, 1:6]),
        lambda: after(text()["input_ids"][:, :6], position_ids=torch.arange(6)[None] + 1),
        lambda: after(text()["input_ids"][:, :6], make_model("llama", seed=1)),
        lambda: after(text()["input_ids"][:, :6].repeat(2, 1)),
        lambda: after(text()["input_ids"][:, :6], make_model("llama", num_hidden_layers=3)),
    ],
    ids=["soft", "first token", "last token", "suffix", "positions", "another model", "rows", "layers"],
)
def test_a_cache_that_holds_something_else_is_refused(made: Any) -> None:
    held = made()
    count, keys = held.get_seq_length(), held.layers[0].keys.clone()
    with pytest.raises(BadSetting, match=r"past_key_values.*something else than the first"):
        run(None, text(), cache=held)
    assert held.get_seq_length() == count
    assert torch.equal(held.layers[0].keys, keys)


def test_a_cache_must_leave_something_to_read() -> None:
    for length in (8, 11):
        held = after(torch.tensor([random_ids(length, 2, PAD)]))
        with pytest.raises(BadSetting, match=f"holds {length} tokens and input_ids has 8"):
            run(None, text(), cache=held)


def test_caches_that_cannot_be_looked_into_are_refused() -> None:
    held = StaticCache(config=model_of().config, max_cache_len=40)
    run("transformers", text(), cache=held)
    longer = {"input_ids": torch.cat([text()["input_ids"], torch.ones(1, 20, dtype=torch.long)], dim=1)}
    with pytest.raises(BadSetting, match="StaticCache"):
        run(None, longer, cache=held)


def test_states_that_are_no_keys_cannot_be_looked_into() -> None:
    from decodery.integrations.generate_output import check_beginning

    shape = {"hidden_size": 32, "intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2}
    layers = {"num_hidden_layers": 2, "layer_types": ["conv", "full_attention"]}
    config = transformers.Lfm2Config(vocab_size=99, **shape, **layers)
    model, ids = transformers.Lfm2ForCausalLM(config).eval(), text()["input_ids"]
    held = DynamicCache(config=config)
    with torch.no_grad():
        model(ids[:, :6], cache=held)
    with pytest.raises(BadSetting, match="no keys and values"):
        check_beginning(model, ids, None, held, "cache")


def test_a_cache_without_the_text_it_holds_is_refused() -> None:
    """`generate` lets one give the new tokens alone, under a mask of all; what is to be drafted from then is not known."""
    held = after(text()["input_ids"])
    with pytest.raises(BadSetting, match="attention_mask covers 11 tokens and input_ids has 3"):
        run(None, text(3, 7), cache=held, attention_mask=torch.ones(1, 11, dtype=torch.long))


def test_a_cache_that_is_not_to_be_used_is_a_contradiction() -> None:
    with pytest.raises(BadSetting, match="use_cache=False contradicts"):
        run(None, text(), cache=DynamicCache(), use_cache=False)


# Methods that the arguments mean


def meant(method: Any, monkeypatch: pytest.MonkeyPatch, **arguments: Any) -> Any:
    """The method that decodes."""
    from decodery.engine.scheduler import Scheduler

    found: list[Any] = []
    submit = Scheduler.submit
    monkeypatch.setattr(
        Scheduler, "submit", lambda self, job, chosen: (found.append(chosen), submit(self, job, chosen))
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
