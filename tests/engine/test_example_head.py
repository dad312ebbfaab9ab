"""CONTRIBUTING's "adding a method", followed: a method that trains a draft head on the target's taps while it serves."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import pytest
import torch
from scripted_requests import new_request
from torch import Tensor, nn

from decodery.engine.background import Kept
from decodery.engine.method import Exactness, parameter
from decodery.engine.registry import method as as_method
from decodery.engine.request import Request
from decodery.models.forward import POST_NORM, Forward, Scores
from decodery.models.heads import HeadNetwork
from decodery.speculative.draft import EMPTY, Draft
from decodery.speculative.loop import Drafter, Round, SpeculativeMethod
from decodery.testing import toy_language_model


@dataclass(eq=False)
class Trained:
    """The head, and the rows and next-but-one tokens that it learns from."""

    head: HeadNetwork
    kept: Kept[nn.Linear]
    rows: list[Tensor] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    def learn(self) -> Iterator[None]:
        """A few steps of training on a copy, which then becomes the head."""
        module = nn.Linear(self.head.hidden or 0, self.head.vocabulary)
        module.load_state_dict(self.kept.value.state_dict())
        optimiser = torch.optim.Adam(module.parameters(), lr=0.02)
        rows, tokens = torch.stack(self.rows).float(), torch.tensor(self.tokens)
        for _ in range(60):
            loss = nn.functional.cross_entropy(module(rows), tokens)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            yield
        self.kept.replace(module)
        self.head.module = module


@dataclass(frozen=True)
class HeadMethod(SpeculativeMethod):
    """Drafts one token with a linear head over the rows that enter the target's own head."""

    name: ClassVar[str] = "example-head"
    title: ClassVar[str] = "Example of a trained head"
    paper: ClassVar[str] = "none"
    exactness: ClassVar[Exactness] = Exactness.IDENTICAL_TO_SAMPLING
    family: ClassVar[str] = "speculative"

    examples: int = parameter(64, "rows after which the head is trained anew", low=1)

    def drafter(self, request: Request) -> Drafter:
        network = request.host.network
        assert network.hidden is not None

        def make() -> Trained:
            module = nn.Linear(network.hidden or 0, network.vocabulary)
            return Trained(HeadNetwork(module, network.hidden or 0, network.vocabulary, "example head"), Kept(module))

        return HeadDrafter(request, request.remember("example head", make), self.examples)


class HeadDrafter(Drafter):
    """After a row of the target: what its head says of the token after the next."""

    taps = (POST_NORM,)

    def __init__(self, request: Request, trained: Trained, examples: int):
        self.request, self.trained, self.examples = request, trained, examples
        self.row: Tensor | None = None
        self.watch_prompt = self.see_prompt

    def see_prompt(self, tokens: Sequence[int], scores: Scores) -> None:
        self.learn(scores.hidden[POST_NORM], tokens[2:])

    def propose(self, tokens: Sequence[int], depth: int) -> Draft | Generator[Forward, Scores, Draft]:
        return EMPTY if self.row is None else self.drafted(self.row)

    def drafted(self, row: Tensor) -> Generator[Forward, Scores, Draft]:
        scores = yield Forward(self.trained.head.new_sequence(), row[None])
        return Draft([int(scores.logits[0].argmax())], [-1])

    def observe(self, round: Round) -> None:
        self.request.statistics.details["head version"] = self.trained.kept.version
        if self.row is not None:
            self.learn(self.row[None], round.emitted[:1])
        rows = round.hidden[POST_NORM]
        self.row = rows[1 + round.verdict.path[-1] if round.verdict.path else 0]

    def learn(self, rows: Tensor, tokens: Sequence[int]) -> None:
        trained = self.trained
        trained.rows += [row.clone() for row in rows[: len(tokens)]]
        trained.tokens += tokens
        if len(trained.tokens) >= self.examples:
            self.request.host.background.add("example head", trained.learn())


def test_a_head_is_trained_while_requests_run_and_changes_no_output() -> None:
    lm = toy_language_model()
    prompts = [f"{word} and {word} and again" for word in ("once", "twice", "thrice")]
    plain = [reply.token_ids for reply in lm.generate(prompts, "autoregressive", max_new_tokens=40)]
    method = HeadMethod(examples=30)
    accepted = []
    for _ in range(3):
        replies = lm.generate(prompts, method, max_new_tokens=40)
        assert [reply.token_ids for reply in replies] == plain
        accepted.append(sum(reply.stats.accepted for reply in replies))
        lm.scheduler().idle(60)
    assert replies[0].stats.details["head version"] >= 2
    assert accepted[-1] > accepted[0] + 10
    assert not lm.background.failed


def test_the_head_is_packed_over_requests() -> None:
    lm = toy_language_model()
    sizes: list[int] = []
    run_pass = HeadNetwork.run_pass

    def counted(self: HeadNetwork, forwards: Sequence[Forward]) -> list[Scores]:
        sizes.append(len(forwards))
        return run_pass(self, forwards)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HeadNetwork, "run_pass", counted)
        replies = lm.generate(["one", "two", "six"], HeadMethod(), max_new_tokens=12, ignore_eos=True)
    assert max(sizes) == 3
    assert replies[0].stats.models["example head"].forwards > 5


def test_who_taps_the_prompt_shares_it() -> None:
    """Asking for hidden rows of a prompt does not keep others from going on from its keys and values."""
    lm = toy_language_model()
    prompt = "a long beginning that both have in common, " * 3
    scheduler = lm.scheduler()
    tapping, plain = new_request(lm, lm.encode(prompt + "x")), new_request(lm, lm.encode(prompt + "yes"), 1)
    with lm.working():
        scheduler.submit(tapping, HeadMethod())
        scheduler.submit(plain, as_method("autoregressive"))
        scheduler.run()
    assert tapping.statistics.shared_rows == 0
    assert plain.statistics.shared_rows >= 100
