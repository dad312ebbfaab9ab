"""The KV budget: sizes as people write them, what requests can need, and a queue instead of failure."""

from __future__ import annotations

import weakref
from typing import Any

import pytest
import torch
from scripted_requests import new_request
from tiny_models import random_ids

import decodery
from decodery.engine import memory, registry
from decodery.engine.autoregressive import Autoregressive
from decodery.engine.events import Finished
from decodery.engine.memory import KVBudget, Need, Room, parse_size, size_text
from decodery.engine.registry import method as as_method
from decodery.engine.scheduler import Scheduler
from decodery.engine.scheduling import Limits
from decodery.errors import BadSetting, NotEnoughMemory
from decodery.language_model import LanguageModel
from decodery.models.key_value_cache import KeyValueCache, Span
from decodery.models.sequence import Sequence
from decodery.testing import scripted_language_model, story_scorer, toy_diffusion_model, toy_language_model


@pytest.mark.parametrize(
    ("given", "size"),
    [
        (5, 5),
        (2e9, 2_000_000_000),
        ("2GB", 2_000_000_000),
        ("2gb", 2_000_000_000),
        (" 1.5 GiB ", 3 << 29),
        ("512MiB", 1 << 29),
        ("512m", 512_000_000),
        ("70 kb", 70_000),
        (".5TB", 500_000_000_000),
        ("4096", 4096),
        ("4096B", 4096),
    ],
)
def test_sizes_are_read_as_people_write_them(given: Any, size: int) -> None:
    assert parse_size("kv_budget", given) == size


@pytest.mark.parametrize(
    "given", ["", "GB", "-2GB", "2 G B", "2XB", "two", 0, -1, True, None, float("nan"), [2], "0.1B"]
)
def test_what_is_no_size_is_refused(given: Any) -> None:
    with pytest.raises(BadSetting, match="kv_budget must be a size such as 2GB"):
        parse_size("kv_budget", given)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1 KB"),
        (999_999, "1 MB"),
        (1_234_000, "1.23 MB"),
        (2e9, "2 GB"),
        (4e15, "4e+03 TB"),
    ],
)
def test_sizes_are_written_for_people(size: float, text: str) -> None:
    assert size_text(size) == text


def test_free_memory_is_some() -> None:
    assert 1 << 20 < memory.free_memory() < 1 << 50


def test_the_ledger_counts() -> None:
    budget = KVBudget(100)
    budget.take(60)
    assert budget.fits(40)
    assert not budget.fits(41)
    with pytest.raises(ValueError, match="do not fit"):
        budget.take(41)
    budget.give_back(60)
    budget.take(30)
    assert budget.as_dict() == {"total": 100, "held": 30, "peak": 60, "waiting": 0, "most_waiting": 0}


# What requests can need


def test_the_size_of_a_cache() -> None:
    network = toy_language_model(layers=2, hidden=32, heads=4).network
    # 2 layers, keys and values, 2 key heads of 8 numbers in float32; rows by 64.
    assert network.cache_bytes(1) == network.cache_bytes(64) == 2 * 2 * 2 * 8 * 4 * 64
    assert network.cache_bytes(65) == 2 * network.cache_bytes(64)
    sequence = network.new_sequence()
    sequence.cache.expect(network.rows_kept(100))
    sequence.cache.reserve(3)
    assert sequence.cache.bytes == network.cache_bytes(100)


def test_the_rows_that_forks_share_are_counted_once() -> None:
    lm = toy_language_model()
    request, network = new_request(lm, [1] * 128), lm.network

    class Forking(Autoregressive):
        def caches(self, request: Any) -> Any:
            return [Room(network, 192), *[Room(network, 192, shared=128)] * 63]

    need = Need.of(request, Forking())
    assert need.bytes == network.cache_bytes(192) + 63 * network.cache_bytes(64)
    assert need.rows == {id(network): 192}
    # A block of which only a part is shared is copied.
    assert network.cache_bytes(192, 127) == network.cache_bytes(128)


METHODS = [
    *(name for name in registry.names() if registry.method(name).family == "speculative"),
    "autoregressive",
    "draft-model(length=auto)",
    "draft-model(width=4, length=2)",
    "draft-model(draft=other)",
    "recursive-speculative-decoding(tree=branching, branching=4x2x2)",
    "recursive-speculative-decoding(draft=other, width=5)",
    "spectr(drafts=5, length=4, draft=layers)",
    "optimal-multi-draft(widths=4x3)",
    "token-recycling(nodes=80, seed_from_prompt=true)",
    "cascade(nodes=64)",
    "swift(bypass=false, context_window=8, stop_threshold=0.0)",
    "del(length=9)",
    "suffix-automaton(auxiliary=token-recycling, adapt=false, length=100)",
]


class Watched:
    """The most rows that sequences ever had, by network."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.rows: dict[str, int] = {}
        self.sequences: dict[str, int] = {}
        made = Sequence.__init__
        write = Sequence.write

        def init(sequence: Sequence, owner: Any, cache: Any) -> None:
            made(sequence, owner, cache)
            self.sequences[owner.name] = self.sequences.get(owner.name, 0) + 1

        def wrote(sequence: Sequence, *what: Any) -> None:
            write(sequence, *what)
            name = sequence.owner.name
            self.rows[name] = max(self.rows.get(name, 0), sequence.length)

        monkeypatch.setattr(Sequence, "__init__", init)
        monkeypatch.setattr(Sequence, "write", wrote)


@pytest.mark.usefixtures("toy_adapters")
@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("spec", METHODS)
def test_no_method_needs_more_than_it_says(spec: str, temperature: float, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = scripted_language_model(story_scorer(), drafter=story_scorer(name="other"))
    prompt = [*random_ids(30, 1, 20), *random_ids(30, 1, 20)]
    request = new_request(lm, prompt, max_new_tokens=60, temperature=temperature, seed=3, ignore_eos=True)
    need = Need.of(request, as_method(spec))
    watched = Watched(monkeypatch)
    scheduler = Scheduler()
    scheduler.submit(request, as_method(spec))
    scheduler.run()
    assert request.error is None
    said: dict[str, list[int]] = {}
    for name, rows in need.parts:
        said.setdefault(name, []).append(rows)
    assert {name: len(rows) for name, rows in said.items()} == watched.sequences
    for name, rows in watched.rows.items():
        assert len(prompt) + 40 < rows <= max(said[name])


# Queueing


MIX: list[tuple[str, int, dict[str, Any]]] = [
    ("autoregressive", 5, {}),
    ("token-recycling", 40, {"temperature": 1.0, "seed": 1}),
    ("draft-model(layers=1)", 17, {"temperature": 0.9, "seed": 4}),
    ("prompt-lookup", 33, {"max_new_tokens": 30}),
    ("cascade", 9, {"temperature": 1.0, "seed": 9}),
    ("del", 21, {"temperature": 1.0, "seed": 2}),
    ("autoregressive", 3, {"max_new_tokens": 40, "temperature": 1.0, "seed": 6}),
]


def decoded(lm: LanguageModel, total: int | None) -> tuple[list[list[int]], KVBudget, list[int]]:
    """What the mix gives under a budget, the budget, and in which order the requests ended."""
    lm.memory.clear()
    ended: list[int] = []
    budget = KVBudget(total)
    scheduler = Scheduler(budget)
    requests = []
    for place, (spec, length, settings) in enumerate(MIX):
        request = new_request(lm, random_ids(length, length, 120), place, **settings)
        request._listener = lambda event: ended.append(event.request) if isinstance(event, Finished) else None
        requests.append(request)
        scheduler.submit(request, as_method(spec))
    scheduler.run()
    assert [request.error for request in requests] == [None] * len(requests)
    assert budget.held == budget.waiting == 0
    return [request.new_tokens for request in requests], budget, ended


@pytest.fixture
def live(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Bytes of all caches that exist, now and at most."""
    size = {"now": 0, "most": 0}
    known: weakref.WeakSet[KeyValueCache] = weakref.WeakSet()
    allocate = KeyValueCache._allocate

    def gone(bytes: int) -> None:
        size["now"] -= bytes

    def allocated(cache: KeyValueCache, first: int, capacity: int) -> Span:
        shared = any(len(span.claims) > 1 for span in cache.spans)
        assert shared or cache not in known or not cache._expected, "a cache of known size is made once"
        span = allocate(cache, first, capacity)
        known.add(cache)
        size["now"] += span.bytes
        size["most"] = max(size["most"], size["now"])
        weakref.finalize(span, gone, span.bytes)
        return span

    monkeypatch.setattr(KeyValueCache, "_allocate", allocated)
    return size


def test_queueing_changes_no_output_and_the_budget_holds(live: dict[str, int]) -> None:
    lm = toy_language_model()
    expected, free, _ = decoded(lm, None)
    assert free.most_waiting == 0
    needs = [
        Need.of(new_request(lm, random_ids(length, length, 120), **settings), as_method(spec)).bytes
        for spec, length, settings in MIX
    ]
    assert free.peak == sum(needs)
    for total in (max(needs), max(needs) + sorted(needs)[0], sum(needs) // 2, sum(needs)):
        live["most"] = live["now"] = 0
        found, budget, _ = decoded(lm, total)
        assert found == expected
        assert live["most"] <= budget.peak <= total, "what is set aside is enough, and within the budget"
        assert (budget.most_waiting > 0) == (total < sum(needs))


@pytest.mark.parametrize(
    "spec",
    [
        "masked-diffusion",
        "masked-diffusion(cfg_scale=1.0)",
        "masked-diffusion(cache=dual, block_length=4)",
        "freecache(block_length=4)",
        "freedave(layout=batch)",
        "freedave-plus-plus(layout=batch, cfg_scale=0.5, draft_steps=3)",
        "freedave(layout=tree)",
        "guided-diffusion",
        "hex(seeds=2)",
        "adablock",
        "localleap",
        "sched",
    ],
)
def test_canvases_stay_within_what_they_say(spec: str, live: dict[str, int]) -> None:
    """Canvases beside each other or one after the other: the same texts, and no more memory than was set aside."""
    lm = toy_diffusion_model(1)
    lm.drafter = toy_diffusion_model(2).network
    prompts = [[3, 1, 4, 1, 5] * 8, [2, 7, 1, 8] * 3]
    found = []
    for place, budget in enumerate((KVBudget(1 << 40), None)):
        requests = [new_request(lm, prompt, number, seed=4) for number, prompt in enumerate([*prompts, prompts[0]])]
        needs = [Need.of(request, as_method(spec)).bytes for request in requests]
        budget = budget or KVBudget(max(needs))
        live["most"] = live["now"] = 0
        scheduler = Scheduler(budget)
        for request in requests:
            scheduler.submit(request, as_method(spec))
        scheduler.run()
        assert [request.error for request in requests] == [None] * 3
        assert live["most"] <= budget.peak == (sum(needs) if place == 0 else max(needs))
        assert live["most"] >= budget.peak // 2, "what is set aside is not far from what is used"
        found.append([request.new_tokens for request in requests])
        assert [request.statistics.shared_rows for request in requests][:2] == [0, 0]
    assert found[0] == found[1]


def test_first_come_first_served() -> None:
    """With room for one at a time they end in the order in which they came, though later ones are shorter."""
    lm = toy_language_model()
    network = lm.network
    scheduler = Scheduler(KVBudget(network.cache_bytes(64)))
    ended: list[int] = []
    requests = []
    for place, count in enumerate((30, 20, 10, 5)):
        request = new_request(lm, [65 + place], place, max_new_tokens=count, ignore_eos=True)
        request._listener = lambda event: ended.append(event.request) if isinstance(event, Finished) else None
        scheduler.submit(request, as_method("autoregressive"))
        requests.append(request)
    assert (scheduler.waiting, scheduler.active, scheduler.budget.waiting) == (3, 4, 3)
    scheduler.run()
    assert ended == [0, 1, 2, 3]
    queued = [request.statistics.queued_seconds for request in requests]
    assert queued == sorted(queued)
    assert queued[3] > 10 * queued[0]
    assert {request.statistics.as_dict()["kv_bytes"] for request in requests} == {network.cache_bytes(64)}


def test_one_that_could_never_fit_is_refused_with_both_sizes() -> None:
    lm = toy_language_model(context=1 << 16)
    lm = LanguageModel(lm.network, lm.tokenizer, lm.stop_ids, limits=Limits("100 KB"))
    scheduler = Scheduler(lm.budget)
    fits = new_request(lm, [65], max_new_tokens=20)
    large = new_request(lm, [65], max_new_tokens=5000)
    scheduler.submit(fits, as_method("autoregressive"))
    scheduler.submit(large, as_method("autoregressive"))
    assert isinstance(large.error, NotEnoughMemory)
    scheduler.run()
    assert fits.error is None
    assert len(fits.new_tokens) == 20 or fits.finish_reason == "stop"
    with pytest.raises(NotEnoughMemory) as caught:
        lm.generate(["a", "b" * 4000], method="autoregressive", max_new_tokens=64)
    text = str(caught.value)
    assert "1.05 MB" in text
    assert "100 KB" in text
    assert "4064 rows of toy-0" in text
    assert "\n" not in text
    assert lm.budget.held == lm.budget.waiting == 0


def test_a_waiting_request_may_be_cancelled() -> None:
    lm = toy_language_model()
    scheduler = Scheduler(KVBudget(lm.network.cache_bytes(64)))
    first, second, third = (new_request(lm, [70], max_new_tokens=9, ignore_eos=True) for _ in range(3))
    for request in (first, second, third):
        scheduler.submit(request, as_method("autoregressive"))
    scheduler.cancel(second)
    assert second.finish_reason == "cancelled"
    assert scheduler.waiting == 1
    scheduler.run()
    assert first.new_tokens == third.new_tokens
    assert second.new_tokens == []
    assert scheduler.budget.held == scheduler.budget.waiting == 0


def test_a_failing_request_gives_its_memory_back() -> None:
    lm = toy_language_model()

    def breaks(*_: Any) -> bool:
        raise RuntimeError("broken rule")

    scheduler = Scheduler(KVBudget(lm.network.cache_bytes(64)))
    bad = new_request(lm, [70], stopping_criteria=(breaks,))
    good = new_request(lm, [70])
    for request in (bad, good):
        scheduler.submit(request, as_method("autoregressive"))
    scheduler.run()
    assert isinstance(bad.error, RuntimeError)
    assert good.error is None
    assert scheduler.budget.held == 0


# The setting


def small(budget: Any, context: int = 4096) -> LanguageModel:
    toy = toy_language_model(context=context)
    return LanguageModel(toy.network, toy.tokenizer, toy.stop_ids, limits=Limits(budget))


def test_samples_beyond_the_budget_are_the_same() -> None:
    free, tight = small(None), small(toy_language_model().network.cache_bytes(64))
    arguments: dict[str, Any] = {
        "method": "autoregressive",
        "max_new_tokens": 12,
        "temperature": 1.0,
        "seed": 5,
        "n": 6,
    }
    expected = [reply.token_ids for reply in free.generate("hello", **arguments)]
    assert [reply.token_ids for reply in tight.generate("hello", **arguments)] == expected
    assert tight.budget.peak == tight.budget.total
    assert tight.budget.most_waiting == 6 - 1
    assert free.budget.most_waiting == 0
    assert len({tuple(ids) for ids in expected}) > 1


def test_the_automatic_budget_is_half_of_what_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "free_memory", lambda device: 10_000_000)
    assert small(None).budget.total == small("auto").budget.total == 5_000_000
    assert scripted_language_model(story_scorer()).budget.total is None, "nothing is kept, so nothing can run out"


@pytest.mark.parametrize("wrong", ["lots", 0, -5])
def test_a_bad_budget_is_refused_at_once(wrong: Any) -> None:
    with pytest.raises(BadSetting, match="kv_budget"):
        small(wrong)


@pytest.mark.parametrize("wrong", [-1, True])
def test_a_bad_chunk_is_refused_at_once(wrong: Any) -> None:
    with pytest.raises(BadSetting, match="prefill_chunk"):
        Limits(prefill_chunk=wrong)


def test_wrapped_models_have_a_budget() -> None:
    network: Any = toy_language_model().network
    lm = decodery.wrap(network.model, toy_language_model().tokenizer, kv_budget="64KB", prefill_chunk=32)
    assert lm.budget.total == 64_000
    assert lm.scheduling.chunk == 32
    assert lm.scheduler("1KB").scheduling.prefix_cache == 1000


# Several at a time on one budget


def test_a_stream_that_nobody_reads_does_not_block_a_request() -> None:
    lm = small(toy_language_model().network.cache_bytes(64))
    stream = lm.stream("abc", method="autoregressive", max_new_tokens=20, ignore_eos=True)
    next(stream)
    assert lm.budget.held == lm.budget.total
    assert len(lm.generate("abd", method="autoregressive", max_new_tokens=5, ignore_eos=True).token_ids) == 5
    assert lm.budget.held == 0, "the stream was brought to its end meanwhile"
    rest = [event for event in stream if not isinstance(event, Finished)]
    assert len(rest) == 19
    assert lm.budget.held == 0


def test_a_request_from_within_another_fails_rather_than_hangs() -> None:
    lm = small(toy_language_model().network.cache_bytes(64))
    found: list[Exception] = []

    def ask(ids: torch.Tensor, scores: torch.Tensor) -> bool:
        if not found:
            try:
                lm.generate("abd", method="autoregressive", max_new_tokens=5)
            except NotEnoughMemory as error:
                found.append(error)
        return False

    reply = lm.generate("abc", method="autoregressive", max_new_tokens=5, ignore_eos=True, stopping_criteria=(ask,))
    assert len(reply.token_ids) == 5
    assert "hold" in str(found[0])
    assert lm.budget.held == 0
