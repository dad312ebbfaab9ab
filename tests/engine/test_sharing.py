"""Long prompts in pieces beside running requests, and beginnings that several requests have in common: the same outputs, fewer
rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from scripted_requests import Scripted, new_request
from tiny_models import random_ids

from decodery.engine.cost import CostCurve
from decodery.engine.events import Token
from decodery.engine.memory import KVBudget
from decodery.engine.method import Decoding
from decodery.engine.registry import method as as_method
from decodery.engine.request import Request
from decodery.engine.scheduler import CHUNKS, UNWATCHED_CHUNK, Scheduler
from decodery.engine.scheduling import Limits, Scheduling
from decodery.engine.sharing import SHORTEST, KeptPrompts, Pending, common
from decodery.language_model import LanguageModel
from decodery.models.forward import Attend, Forward, Layers, Rows, Scores, Slots
from decodery.models.scorer import Scorer
from decodery.testing import ScriptedScorer, scripted_language_model, story_scorer, toy_language_model

PLAIN = Scheduling(chunk=0, share=False)
SPECS = [
    "autoregressive",
    "cascade",
    "prompt-lookup(adapt=false)",
    "token-recycling(seed_from_prompt=true)",
    "suffix-automaton",
    "approximate-match-lookup",
    "adaptive-draft-verification",
    "draft-model(layers=1)",
    "draft-model(draft=other, width=2)",
    "recursive-speculative-decoding(draft=layers)",
    "spectr(draft=layers)",
    "optimal-multi-draft",
    "swift(bypass=false, stop_threshold=0.0)",
    "del(bypass=false)",
]


class PassRows:
    """How many rows each pass of a scorer had, by its forwards, from now on."""

    def __init__(self, scorer: Scorer):
        self.passes: list[list[int]] = []
        run_pass = scorer.run_pass

        def counted(forwards: Sequence[Forward]) -> list[Scores]:
            self.passes.append([forward.count for forward in forwards])
            return run_pass(forwards)

        scorer.run_pass = counted  # type: ignore[method-assign]

    @property
    def total(self) -> int:
        return sum(map(sum, self.passes))


def run(requests: Sequence[tuple[Request, str]], scheduling: Scheduling, budget: KVBudget | None = None) -> Scheduler:
    scheduler = Scheduler(budget, scheduling)
    for request, spec in requests:
        scheduler.submit(request, as_method(spec))
    scheduler.run()
    assert [request.error for request, _ in requests] == [None] * len(requests)
    return scheduler


def samples(
    lm: LanguageModel, prompts: Sequence[Sequence[int]], spec: str, **settings: Any
) -> list[tuple[Request, str]]:
    lm.memory.clear()
    requests = []
    for place, prompt in enumerate(prompts):
        request = new_request(lm, prompt, place, **settings)
        requests.append((Request(lm, prompt, request.settings, place, place), spec))
    return requests


# Sharing


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("spec", SPECS)
def test_samples_of_one_prompt_score_it_once(spec: str, temperature: float) -> None:
    """Whatever the method: the same outputs, and of four prompts of 70 tokens three are not scored by any network."""
    lm = scripted_language_model(story_scorer(vocabulary=40), drafter=story_scorer(seed=1, vocabulary=40, name="other"))
    prompts = [random_ids(70, 5, 40)] * 4
    found: dict[bool, list[list[int]]] = {}
    rows: dict[bool, int] = {}
    for share in (False, True):
        requests = samples(lm, prompts, spec, temperature=temperature, seed=8)
        run(requests, Scheduling(chunk=0, share=share))
        found[share] = [request.new_tokens for request, _ in requests]
        rows[share] = sum(entry.rows for request, _ in requests for entry in request.statistics.models.values())
        shared = sum(request.statistics.shared_rows for request, _ in requests)
        assert shared == 0 if not share else shared >= 3 * 69
    assert found[True] == found[False]
    if spec not in STATEFUL or temperature == 0:
        assert rows[False] - rows[True] >= 3 * 69


STATEFUL = ("cascade", "token-recycling(seed_from_prompt=true)", "adaptive-draft-verification")
"""What they draft depends on what others of the session learned before, so rows behind the prompt may differ in number."""


def test_the_whole_prompt_is_one_forward_of_the_first() -> None:
    scorer = story_scorer()
    lm = scripted_language_model(scorer)
    counted = PassRows(scorer)
    run(samples(lm, [random_ids(50, 2, 20)] * 3, "autoregressive", max_new_tokens=4), Scheduling())
    assert counted.passes == [[50], [1, 1, 1], [1, 1, 1], [1, 1, 1]]


def test_a_common_beginning_is_scored_once_and_the_rest_by_each() -> None:
    """One system prompt of 40 tokens, three questions, each asked twice."""
    scorer = story_scorer()
    lm = scripted_language_model(scorer)
    system = random_ids(40, 2, 20)
    prompts = [[*system, *random_ids(30, 3 + question, 20)] for question in (0, 1, 2, 0, 1, 2)]
    expected = samples(lm, prompts, "autoregressive", max_new_tokens=5, temperature=1.0, seed=1)
    run(expected, PLAIN)
    counted = PassRows(scorer)
    requests = samples(lm, prompts, "autoregressive", max_new_tokens=5, temperature=1.0, seed=1)
    run(requests, Scheduling(chunk=0))
    assert [request.new_tokens for request, _ in requests] == [request.new_tokens for request, _ in expected]
    assert counted.total == 40 + 3 * 30 + 6 * 4
    assert counted.passes[0] == [70]
    assert [request.statistics.shared_rows for request, _ in requests] == [0, 40, 40, 70, 70, 70]
    assert {request.statistics.forwards for request, _ in requests} == {5}, (
        "forwards are what was asked, whoever scored it"
    )


def test_short_beginnings_are_not_waited_for() -> None:
    scorer = story_scorer()
    lm = scripted_language_model(scorer)
    alike = random_ids(SHORTEST - 1, 2, 20)
    counted = PassRows(scorer)
    run(samples(lm, [[*alike, 3, *alike], [*alike, 4, *alike]], "autoregressive", max_new_tokens=1), Scheduling())
    assert counted.passes == [[31, 31]]


def test_one_who_comes_later_goes_on_from_a_running_request() -> None:
    scorer = story_scorer()
    lm = scripted_language_model(scorer)
    prompt = random_ids(60, 2, 20)
    early, late = (
        request for request, _ in samples(lm, [prompt, [*prompt[:50], 1, 2, 3]], "autoregressive", max_new_tokens=20)
    )
    scheduler = Scheduler()
    scheduler.submit(early, as_method("autoregressive"))
    for _ in range(5):
        scheduler.step()
    counted = PassRows(scorer)
    scheduler.submit(late, as_method("cascade"))
    scheduler.step()
    assert counted.passes == [[1, 3]]
    scheduler.run()
    alone = samples(lm, [late.prompt], "cascade", max_new_tokens=20)
    run(alone, PLAIN)
    assert late.new_tokens == alone[0][0].new_tokens


def test_a_failing_leader_leaves_the_others_to_themselves() -> None:
    """The first request dies in the pass that the others wait for."""

    class Trips(ScriptedScorer):
        tripped = False

        def run_pass(self, forwards: Sequence[Forward]) -> list[Scores]:
            if not self.tripped:
                self.tripped = True
                raise RuntimeError("out of order")
            return super().run_pass(forwards)

    scorer = Trips(lambda prefix: torch.arange(20.0) * (prefix[-1] % 3 - 1), 20)
    lm = scripted_language_model(scorer)
    requests = [request for request, _ in samples(lm, [random_ids(40, 1, 20)] * 3, "autoregressive", max_new_tokens=3)]
    scheduler = Scheduler()
    for request in requests:
        scheduler.submit(request, as_method("autoregressive"))
    scheduler.run()
    assert isinstance(requests[0].error, RuntimeError)
    assert [request.error for request in requests[1:]] == [None, None]
    assert requests[1].new_tokens == requests[2].new_tokens != []


def test_rows_of_other_layers_are_not_taken() -> None:
    """A sequence that went through the first layers only is no beginning for one that goes through all."""
    lm = scripted_language_model(story_scorer())
    prompt = random_ids(40, 3, 20)

    def half(request: Request) -> Decoding:
        sequence = request.new_sequence()
        yield Forward(sequence, prompt, layers=Layers(0, 1))
        yield Forward(sequence, [1], layers=Layers(0, 1))
        yield Forward(request.new_sequence(), prompt)

    requests = [new_request(lm, prompt, place) for place in range(3)]
    scheduler = Scheduler()
    scheduler.submit(requests[0], Scripted(half))
    scheduler.submit(requests[1], as_method("autoregressive"))
    scheduler.submit(requests[2], Scripted(half))
    scheduler.run()
    assert [request.error for request in requests] == [None] * 3
    # The third has the first layers' rows from the first, and later the whole model's; the second has none from the first.
    assert [request.statistics.shared_rows for request in requests] == [0, 0, 40 + 40]


def test_canvases_and_trees_are_left_alone() -> None:
    scorer = story_scorer()
    sequence = scorer.new_sequence()
    tokens = list(range(20))
    assert Pending(Forward(sequence, tokens)).plain
    for other in (
        Forward(sequence, tokens, attend=Attend.FULL),
        Forward(sequence, tokens, attend=torch.ones(20, 20, dtype=torch.bool)),
        Forward(sequence, tokens, slots=Slots.NOWHERE),
        Forward(sequence, tokens, slots=range(20)),
        Forward(sequence, tokens, positions=range(20)),
        Forward(sequence, torch.zeros(20, 2)),
        Forward(sequence, tokens, joined=True),
        Forward(sequence, tokens, logits=[3, 2]),
        Forward(sequence, tokens[:SHORTEST]),
    ):
        assert not Pending(other).plain


@pytest.mark.parametrize(
    ("one", "other", "count"), [([], [1], 0), ([1], [2], 0), ([1, 2, 3], [1, 2], 2), ([1, 2, 3, 4], [1, 2, 9, 4], 2)]
)
def test_how_far_texts_agree(one: list[int], other: list[int], count: int) -> None:
    assert common(one, other) == common(other, one) == count


def test_how_far_long_texts_agree() -> None:
    text = random_ids(300, 1, 9)
    for place in (0, 1, 2, 149, 150, 151, 298, 299):
        assert common(text, [*text[:place], 99, *text[place + 1 :]]) == place


def test_scores_are_shared_but_not_their_memory() -> None:
    lm = scripted_language_model(story_scorer())
    seen: list[torch.Tensor] = []

    def spoil(request: Request) -> Decoding:
        scores = yield Forward(request.new_sequence(), request.prompt, logits=Rows.LAST)
        seen.append(scores.logits.clone())
        scores.logits.fill_(-1.0)

    scheduler = Scheduler()
    for place in range(2):
        scheduler.submit(new_request(lm, random_ids(40, 1, 20), place), Scripted(spoil))
    scheduler.run()
    assert torch.equal(seen[0], seen[1])


# The cache of prefixes


def kept(lm: LanguageModel, tokens: Sequence[int]) -> Any:
    sequence = lm.network.new_sequence()
    ask = Pending(Forward(sequence, list(tokens), logits=Rows.LAST))
    ask.scored(len(tokens), lm.network.run([ask.piece(len(tokens))])[0])
    return sequence


def test_recent_prompts_are_gone_on_from() -> None:
    toy = toy_language_model()
    lm = LanguageModel(toy.network, toy.tokenizer, toy.stop_ids, limits=Limits("1MB"))
    scheduler = lm.scheduler(prefix_cache="100KB")
    system = random_ids(100, 4, 120)
    replies = []
    for question in (1, 2, 1):
        request = new_request(lm, [*system, *random_ids(20, question, 120)])
        scheduler.submit(request, as_method("autoregressive"))
        scheduler.run()
        replies.append(request)
    assert [request.statistics.shared_rows for request in replies] == [0, 100, 119]
    assert replies[0].new_tokens == replies[2].new_tokens
    assert lm.budget.held == scheduler.prefixes.size > 0
    assert [request.statistics.rows for request in replies] == [120 + 11, 20 + 11, 1 + 11]


def test_the_least_recently_used_goes_first_and_the_budget_holds() -> None:
    lm = toy_language_model()
    size = lm.network.cache_bytes(64)
    budget = KVBudget(4 * size)
    cache = KeptPrompts(budget, 2 * size)
    texts = [random_ids(40, seed, 120) for seed in range(3)]

    def found(text: list[int]) -> bool:
        return cache.find(Pending(Forward(lm.network.new_sequence(), [*text, 1]))) is not None

    def ask(text: list[int]) -> bool:
        return cache.find(Pending(Forward(lm.network.new_sequence(), [*text, 1], logits=Rows.LAST))) is not None

    cache.keep(kept(lm, texts[0]), 40)
    cache.keep(kept(lm, texts[1]), 40)
    assert not found(texts[0]), "who wants scores of all rows can take none"
    assert ask(texts[1])
    assert ask(texts[0])
    cache.keep(kept(lm, texts[2]), 40)
    assert [ask(text) for text in texts] == [True, False, True]
    assert cache.size == budget.held == 2 * size
    budget.take(2 * size)
    cache.make_room(size)
    assert len(cache) == 1
    cache.clear()
    assert cache.size == 0
    assert budget.held == 2 * size
    budget.take(2 * size)
    cache.keep(kept(lm, texts[0]), 40)
    assert len(cache) == 0, "requests come first"


def test_a_longer_prompt_takes_the_place_of_its_beginning() -> None:
    lm = toy_language_model()
    cache = KeptPrompts(KVBudget(), 1 << 20)
    text = random_ids(80, 1, 120)
    cache.keep(kept(lm, text[:40]), 40)
    cache.keep(kept(lm, text), 80)
    cache.keep(kept(lm, text[:60]), 60)
    cache.keep(kept(lm, text[:5]), 5)
    assert len(cache) == 1
    assert cache.size == lm.network.cache_bytes(80)


def test_requests_that_wait_get_the_memory_of_kept_prefixes() -> None:
    toy = toy_language_model()
    size = toy.network.cache_bytes(64)
    lm = LanguageModel(toy.network, toy.tokenizer, toy.stop_ids, limits=Limits(2 * size))
    server = lm.scheduler(prefix_cache=size)
    server.submit(new_request(lm, random_ids(30, 1, 120)), as_method("autoregressive"))
    server.run()
    assert lm.budget.held == size
    prompts = [random_ids(30, seed, 120) for seed in (2, 3)]
    replies = lm.generate(prompts, method="autoregressive", max_new_tokens=4)
    assert all(reply.error is None for reply in replies)
    assert lm.budget.most_waiting == 0
    assert lm.budget.peak == 2 * size


# Pieces


@pytest.mark.parametrize("spec", SPECS[::2])
def test_pieces_give_the_same_outputs(spec: str) -> None:
    lm = scripted_language_model(story_scorer(vocabulary=40), drafter=story_scorer(seed=1, vocabulary=40, name="other"))
    prompts = [random_ids(length, length, 40) for length in (3, 90, 50, 17)]
    found = []
    for scheduling in (PLAIN, Scheduling(chunk=20, share=False), Scheduling(chunk=7)):
        requests = samples(lm, prompts, spec, temperature=1.0, seed=2, max_new_tokens=20)
        run(requests, scheduling)
        found.append(
            [
                (request.new_tokens, request.text, request.statistics.forwards if scheduling is PLAIN else 0)
                for request, _ in requests
            ]
        )
        rows = [sum(entry.rows for entry in request.statistics.models.values()) for request, _ in requests]
        assert all(count >= len(prompt) for count, prompt in zip(rows, prompts, strict=True))
    assert [[pair[:2] for pair in each] for each in found[1:]] == [[pair[:2] for pair in found[0]]] * 2


def test_a_running_request_goes_on_while_a_long_prompt_is_read() -> None:
    """With pieces of 32, a prompt of 320 takes ten rounds, in each of which the other request gets its token."""
    scorer = story_scorer()
    lm = scripted_language_model(scorer)
    for chunk, between in ((32, 10), (0, 1)):
        events: list[Any] = []
        short, long = (
            (request, request)
            for request, _ in samples(lm, [[1, 2], random_ids(320, 3, 20)], "autoregressive", max_new_tokens=30)
        )
        for request in (short[0], long[0]):
            request._listener = events.append
        counted = PassRows(scorer)
        scheduler = Scheduler(None, Scheduling(chunk=chunk))
        scheduler.submit(short[0], as_method("autoregressive"))
        for _ in range(4):
            scheduler.step()
        begun = len(counted.passes)
        scheduler.submit(long[0], as_method("autoregressive"))
        scheduler.run()
        order = [event.request for event in events if isinstance(event, Token)]
        assert order[:4] == [0] * 4
        assert order.index(1) == 4 + between, "so many tokens of the other before its first"
        assert max(map(sum, counted.passes[begun:])) == (chunk or 320) + 1
        assert long[0].statistics.forwards == 30, "the pieces of a prompt are one forward"
        assert long[0].statistics.rows == 320 + 29


def test_long_drafts_are_not_cut() -> None:
    """Who drafts far is running, and does not wait behind a prompt."""
    scorer = ScriptedScorer(
        lambda prefix: torch.nn.functional.one_hot(torch.tensor((prefix[-1] + 1) % 8), 20).float(), 20
    )
    lm = scripted_language_model(scorer)
    counted = PassRows(scorer)
    requests = samples(
        lm, [[*range(8)] * 2] * 2, "prompt-lookup(length=40, adapt=false, pick=longest)", max_new_tokens=60
    )
    requests += samples(lm, [random_ids(90, 1, 20)], "autoregressive", max_new_tokens=2)
    run(requests, Scheduling(chunk=20, share=False))
    assert max(map(max, counted.passes)) > 20, "a verification of more rows than a chunk has"
    assert min(request.statistics.accepted for request, _ in requests[:2]) > 30


def test_prompts_that_come_together_are_read_in_order() -> None:
    scorer = story_scorer()
    lm = scripted_language_model(scorer)
    counted = PassRows(scorer)
    prompts = [random_ids(length, length, 20) for length in (50, 40, 30)]
    run(samples(lm, prompts, "autoregressive", max_new_tokens=3), Scheduling(chunk=48))
    assert counted.passes == [[48], [2, 40, 6], [1, 1, 24], [1, 1, 1], [1]]


def test_a_request_alone_reads_its_prompt_in_one_pass() -> None:
    scorer = story_scorer()
    lm = scripted_language_model(scorer)
    counted = PassRows(scorer)
    run(samples(lm, [random_ids(700, 1, 20)], "autoregressive", max_new_tokens=2), Scheduling(chunk=48))
    assert counted.passes == [[700], [1]]


@pytest.mark.parametrize(
    ("curve", "chunk"),
    [
        (CostCurve((1, 256), (1.0, 4.0)), 256),
        (CostCurve((1, 256), (1.0, 8.0)), 64),
        (CostCurve((1, 256), (1.0, 256.0)), CHUNKS[0]),
        (CostCurve.flat(), CHUNKS[-1]),
    ],
)
def test_the_cost_curve_says_how_much_is_read_at_a_time(
    curve: CostCurve, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    scorer = story_scorer()
    lm = scripted_language_model(scorer)
    asked = []
    monkeypatch.setattr(lm, "cost", lambda network: (asked.append(network), curve)[1])
    counted = PassRows(scorer)
    run(samples(lm, [[1], [2], random_ids(600, 1, 20)], "autoregressive", max_new_tokens=2), Scheduling())
    assert counted.passes[0] == [1, 1, chunk]
    assert asked
    asked.clear()
    run(samples(lm, [[1], random_ids(60, 1, 20)], "autoregressive", max_new_tokens=2), Scheduling())
    assert not asked, "where there is nothing to choose, nothing is measured"


def test_prompts_are_read_fast_where_nobody_waits_for_single_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """`generate` hands back everything at the end, so the total time alone counts; a stream and a server are watched."""
    scorer = story_scorer()
    lm = scripted_language_model(scorer)
    monkeypatch.setattr(lm, "cost", lambda network: pytest.fail("nothing to weigh"))
    counted = PassRows(scorer)
    prompts = [[1], random_ids(600, 1, 20)]
    run(samples(lm, prompts, "autoregressive", max_new_tokens=2), Scheduling(watched=False))
    assert counted.passes[0] == [1, UNWATCHED_CHUNK]
    counted.passes.clear()
    lm.generate(prompts, max_new_tokens=2, method="autoregressive")
    assert counted.passes[0] == [1, UNWATCHED_CHUNK]
    monkeypatch.setattr(lm, "cost", lambda network: CostCurve((1, 256), (1.0, 256.0)))
    counted.passes.clear()
    for _ in (stream := lm.stream(prompts, max_new_tokens=2, method="autoregressive")):
        pass
    assert counted.passes[0] == [1, CHUNKS[0]]
    assert [len(reply.token_ids) for reply in stream.replies()] == [2, 2]


def test_the_prompt_s_own_scores_are_the_same_in_pieces_and_shared() -> None:
    lm = toy_language_model()
    prompts = ["a long prompt " * 12] * 2 + ["another prompt " * 9]
    found = []
    for scheduling in (PLAIN, Scheduling(chunk=19)):
        lm.scheduling = scheduling
        replies = lm.generate(prompts, method="autoregressive", max_new_tokens=4, echo=True, logprobs=2)
        found.append([[entry.raw for entry in reply.prompt_logprobs] for reply in replies])
    for one, other in zip(*found, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


@pytest.mark.parametrize("share", [True, False])
def test_an_ask_of_which_no_scores_are_wanted_is_answered_where_all_its_rows_are_known(share: bool) -> None:
    lm, text = scripted_language_model(story_scorer()), [place % 7 for place in range(SHORTEST + 4)]
    answers = []

    def decode(request: Request) -> Decoding:
        for _ in range(2):
            answers.append((yield Forward(request.new_sequence(), text, logits=Rows.NONE)))
        request.finish("stop")

    scheduler = Scheduler(None, Scheduling(chunk=0, share=share))
    scheduler.submit(new_request(lm, text), Scripted(decode))
    for _ in range(4):
        scheduler.step()
    assert not scheduler.active
    assert [answer.logits.shape[0] for answer in answers] == [0, 0]
