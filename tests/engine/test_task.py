"""Tasks that are no requests: they share passes, memory, beginnings and failures with decoding."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest
import torch
from scripted_requests import new_request
from tiny_models import network_of, random_ids

from decodery.engine.memory import KVBudget
from decodery.engine.registry import method as as_method
from decodery.engine.scheduler import Scheduler
from decodery.engine.scheduling import Scheduling
from decodery.engine.task import Asking, Task
from decodery.errors import BadSetting, NotEnoughMemory
from decodery.language_model import LanguageModel
from decodery.models.forward import Forward, Rows, Slots
from decodery.models.scorer import Scorer
from decodery.testing import LetterTokenizer, SmallLanguageModel, scripted_language_model, story_scorer


def count_passes(scorer: Scorer) -> list[list[int]]:
    """Rows of each forward of each pass of a scorer, from now on."""
    passes: list[list[int]] = []
    run_pass = scorer.run_pass

    def counted(forwards: Any) -> Any:
        passes.append([forward.count for forward in forwards])
        return run_pass(forwards)

    scorer.run_pass = counted  # type: ignore[method-assign]
    return passes


def scan(network: Scorer, prompt: list[int]) -> Asking[dict[int, int]]:
    """Token -> the likeliest one after it, of every token that could follow the prompt."""
    sequence = network.new_sequence()
    yield Forward(sequence, prompt, logits=Rows.NONE)
    found = {}
    for token in range(network.vocabulary):
        scores = yield Forward(sequence, [token], slots=Slots.NOWHERE)
        found[token] = int(scores.logits[0].argmax())
    return found


def reads(network: Scorer, tokens: list[int]) -> Asking[torch.Tensor]:
    scores = yield Forward(network.new_sequence(), tokens, logits=Rows.LAST)
    return scores.logits[0]


def fails(network: Scorer) -> Asking[None]:
    yield Forward(network.new_sequence(), [1])
    raise KeyError("lost")


def test_a_scan_runs_beside_requests_and_packs_with_them() -> None:
    scorer = story_scorer()
    lm = scripted_language_model(scorer)
    expected = lm.run(scan(scorer, [1, 2]))
    alone = new_request(lm, [3], max_new_tokens=25)
    Scheduler().submit(alone, as_method("autoregressive"))
    passes = count_passes(scorer)
    scheduler, task = Scheduler(), Task(scan(scorer, [1, 2]))
    requests = [new_request(lm, [place], place, max_new_tokens=25) for place in (3, 4)]
    for request in requests:
        scheduler.submit(request, as_method("autoregressive"))
    scheduler.start(task)
    scheduler.run()
    assert task.value == expected
    assert (task.finish_reason, task.error) == ("returned", None)
    assert [len(forwards) for forwards in passes] == [3] * 25
    assert sum(model.forwards for model in task.statistics.models.values()) == 25
    assert [request.finish_reason for request in requests] == ["length"] * 2


def test_run_gives_what_each_returns_in_order_in_the_same_passes() -> None:
    scorer = story_scorer()
    lm = scripted_language_model(scorer)
    passes = count_passes(scorer)
    prompts = [[1], [2, 3], [4]]
    rows = lm.run([reads(scorer, prompt) for prompt in prompts])
    assert passes == [[1, 2, 1]]
    for row, prompt in zip(rows, prompts, strict=True):
        assert torch.equal(row, lm.run(reads(scorer, prompt)))
    assert lm.run([]) == []


def test_one_that_fails_stands_as_its_error_and_harms_nobody() -> None:
    scorer = story_scorer()
    lm = scripted_language_model(scorer)
    first, lost, last = lm.run([scan(scorer, [1]), fails(scorer), scan(scorer, [2])])
    assert isinstance(lost, KeyError)
    assert first == lm.run(scan(scorer, [1]))
    assert last == lm.run(scan(scorer, [2]))
    with pytest.raises(KeyError, match="lost"):
        lm.run(fails(scorer))


@pytest.mark.parametrize("wrong", [scan, 3, None, [1, 2]])
def test_what_is_no_coroutine_is_refused(wrong: Any) -> None:
    with pytest.raises(BadSetting, match="a generator that yields forwards"):
        scripted_language_model(story_scorer()).run([wrong])


def test_a_coroutine_runs_once() -> None:
    scorer = story_scorer()
    lm = scripted_language_model(scorer)
    task = Task(reads(scorer, [1]))
    lm.run(task)
    with pytest.raises(BadSetting, match="is over"):
        lm.run(task)
    again = reads(scorer, [1])
    with pytest.raises(BadSetting, match="twice"):
        lm.run([again, again])


def test_a_malformed_ask_fails_its_task() -> None:
    scorer = story_scorer()
    lm = scripted_language_model(scorer)
    good, bad = lm.run([reads(scorer, [1]), reads(scorer, [-1])])
    assert isinstance(bad, ValueError)
    assert good.shape == (scorer.vocabulary,)


# Memory, pieces, beginnings in common


def network_model() -> tuple[LanguageModel, Any]:
    network = network_of("llama", "eager")
    return SmallLanguageModel(network, LetterTokenizer(network.vocabulary)), network


def test_tasks_wait_for_memory_and_what_never_fits_is_refused() -> None:
    lm, network = network_model()
    budget = KVBudget(network.cache_bytes(64))
    scheduler = Scheduler(budget)
    tasks = [Task(reads(network, random_ids(20, seed)), [(network, 40)]) for seed in range(3)]
    large = Task(reads(network, [1]), [(network, 65)])
    request = new_request(lm, random_ids(20, 9))
    scheduler.start(tasks[0])
    scheduler.submit(request, as_method("autoregressive"))
    for task in [*tasks[1:], large]:
        scheduler.start(task)
    assert (scheduler.waiting, budget.held) == (3, network.cache_bytes(40))
    scheduler.cancel(tasks[2])
    scheduler.run()
    assert [task.finish_reason for task in tasks] == ["returned", "returned", "cancelled"]
    assert isinstance(large.error, NotEnoughMemory)
    assert request.finish_reason == "length"
    assert (budget.held, budget.peak) == (0, network.cache_bytes(40))


def test_long_texts_of_tasks_are_cut_while_others_wait_and_shared() -> None:
    lm, network = network_model()
    text = random_ids(70, 1)
    alone = lm.run(reads(network, text))
    scheduler = Scheduler(None, Scheduling(chunk=32))
    request = new_request(lm, [5], max_new_tokens=6)
    tasks = [Task(reads(network, text)), Task(reads(network, [*text[:50], 7, 8]))]
    rows: list[int] = []
    run_pass = network.run_pass
    network.run_pass = lambda forwards: rows.append(sum(f.count for f in forwards)) or run_pass(forwards)
    try:
        scheduler.submit(request, as_method("autoregressive"))
        for task in tasks:
            scheduler.start(task)
        scheduler.run()
    finally:
        del network.run_pass
    assert max(rows) <= 32 + 2
    assert sum(rows) == 70 + 2 + 6
    assert tasks[1].statistics.shared_rows == 50
    assert tasks[0].value is not None
    assert float((tasks[0].value - alone).abs().max()) < 1e-4


@pytest.mark.parametrize("stop", ["cancelled", "interrupted"])
def test_a_task_that_is_ended_from_outside_is_closed(stop: str) -> None:
    scorer = story_scorer()
    closed = []

    def endless() -> Generator[Forward, Any, None]:
        try:
            while True:
                yield Forward(scorer.new_sequence(), [1])
        finally:
            closed.append(True)

    def interrupting() -> Generator[Forward, Any, None]:
        yield Forward(scorer.new_sequence(), [1])
        raise KeyboardInterrupt

    scheduler, task = Scheduler(), Task(endless())
    scheduler.start(task)
    scheduler.step()
    if stop == "cancelled":
        scheduler.cancel(task)
    else:
        scheduler.start(Task(interrupting()))
        with pytest.raises(KeyboardInterrupt):
            scheduler.run()
    assert (closed, task.finish_reason, scheduler.active) == ([True], "cancelled", 0)
