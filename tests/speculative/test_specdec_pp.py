"""SpecDec++: laws, how far it drafts, how often it asks its head, and which heads it takes."""

from __future__ import annotations

import math
import zlib
from collections.abc import Generator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from decodery.engine.events import Drafted, Token
from decodery.engine.registry import method as as_method
from decodery.engine.request import Request
from decodery.engine.settings import Settings
from decodery.errors import BadParameter, MethodUnavailable
from decodery.language_model import LanguageModel
from decodery.models.forward import Forward, Scores
from decodery.models.heads import HeadNetwork
from decodery.models.scorer import Scorer
from decodery.speculative.specdec_pp import method as specdec
from decodery.speculative.specdec_pp.acceptance import AcceptanceHead, TrainedHead, corrected
from decodery.speculative.specdec_pp.drafter import HeadStop
from decodery.testing import (
    DrafterLaws,
    TabularScorer,
    goodness_of_fit,
    sampled_outputs,
    scripted_language_model,
    story_scorer,
    toy_language_model,
    watched,
)
from decodery.testing.outputs import finished, new_request

WIDTH = 2
"""Of the rows of scorers without a network."""
SCALE = 0.01
"""Rows tell the number of their prefix, which is large."""


def random_head(seed: int = 0, blocks: int = 2, hidden: int = WIDTH) -> AcceptanceHead:
    """A head whose answers depend on the row, and are neither all sure nor all the same."""
    head = AcceptanceHead(hidden, blocks)
    generator = torch.Generator().manual_seed(seed)
    for weight in head.parameters():
        weight.data = torch.randn(weight.shape, generator=generator) * (SCALE if weight.dim() > 1 else 1.0)
    return head


def trained(
    lm: LanguageModel, head: AcceptanceHead | None = None, threshold: float = 0.5, layers: int = 0
) -> TrainedHead:
    """A head for a model and what drafts for it."""
    network = lm.network if layers else lm.companion("other").network
    return TrainedHead(
        head or random_head(), lm.network.fingerprint(), network.fingerprint(), layers, threshold, 6.0, {"seed": 0}
    )


class Constant(nn.Module):
    """Gives every token the same chance, and counts the rows that it is asked about."""

    def __init__(self, accepted: float):
        super().__init__()
        self.accepted, self.asked = accepted, 0

    def forward(self, rows: Tensor) -> Tensor:
        self.asked += len(rows)
        reject = math.log(1 - self.accepted) if self.accepted < 1 else -math.inf
        accept = math.log(self.accepted) if self.accepted > 0 else -math.inf
        return torch.tensor([reject, accept]).expand(len(rows), 2)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch):
    """Puts another module in the place of every head."""

    def put(module: nn.Module) -> None:
        monkeypatch.setattr(
            specdec.SpecDecPlusPlus,
            "_network",
            lambda self, request, found: HeadNetwork(module, WIDTH, 2, "acceptance head"),
        )

    return put


def a_host(vocabulary: int = 6) -> LanguageModel:
    scorer = TabularScorer(vocabulary, order=None, seed=5)
    return scripted_language_model(scorer, drafter=scorer.blurred())


def kept(folder: Path, lm: LanguageModel, **facts: object) -> str:
    trained(lm, **facts).write(folder)  # type: ignore[arg-type]
    return str(folder)


class TestByConfidence(DrafterLaws):
    methods = ("specdec-pp", "specdec-pp(draft=other, confidence=0.5, shortest=1, longest=4)")
    samples = 1000


class Chances(nn.Module):
    """A chance of its own for every prefix, whatever number the scorer has given to it."""

    def __init__(self, drafter: Scorer):
        super().__init__()
        self.drafter = drafter

    def forward(self, rows: Tensor) -> Tensor:
        prefixes = [self.drafter._numbered()[int(number)] for number in rows[:, 0].tolist()]  # type: ignore[attr-defined]
        chances = torch.tensor([zlib.crc32(repr(prefix).encode()) % 97 / 97 for prefix in prefixes])
        return torch.stack([(1 - chances).log(), chances.log()], dim=1)


class TestByHead(DrafterLaws):
    methods = ("specdec-pp(draft=other, rule=head, threshold=0.5, shortest=1, longest=4)",)
    samples = 1000

    @pytest.fixture(autouse=True)
    def _heads(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Its hosts have networks of several fingerprints, and rows of numbers that depend on who came first."""
        monkeypatch.setattr(specdec.SpecDecPlusPlus, "_trained", lambda self, request: trained(request.host))
        monkeypatch.setattr(
            specdec.SpecDecPlusPlus,
            "_network",
            lambda self, request, found: HeadNetwork(
                Chances(request.host.companion("other").network), WIDTH, 2, "acceptance head"
            ),
        )


def test_the_law_is_the_target_s_with_any_head(tmp_path: Path) -> None:
    """Vocabulary of 6, 3 tokens, 50,000 samples; the least likely outputs are pooled. Drafts are of one to three tokens."""
    lm = a_host()
    folder = kept(tmp_path, lm)
    spec = f"specdec-pp(draft=other, head={folder}, threshold=0.5, shortest=1, longest=3)"
    settings = Settings(temperature=1.0, max_new_tokens=3, seed=4)
    counts = sampled_outputs(lm, spec, [0, 1], settings, 50_000)
    assert isinstance(lm.network, TabularScorer)
    fit = goodness_of_fit(counts, lm.network.joint([0, 1], 3, settings))
    assert fit.p_value > 0.001, fit


def rounds_of(lm: LanguageModel, spec: str, prompt: list[int], **settings: object) -> list[list[int]]:
    """The drafts of a request, round by round."""
    request, method = new_request(lm, spec, prompt, Settings(**settings))  # type: ignore[arg-type]
    finished(request, method)
    return [list(event.tokens) for event in request.events if isinstance(event, Drafted)]


def drafted_and_accepted(request: Request) -> list[tuple[int, int]]:
    """Of each round that is over, how many tokens were drafted and accepted."""
    told = [event for event in request.events if isinstance(event, Drafted | Token)]
    rounds: list[list[int]] = []
    for event in told:
        if isinstance(event, Drafted):
            rounds.append([len(event.tokens), 0])
        elif event.from_draft:
            rounds[-1][1] += 1
    return [(drafted, accepted) for drafted, accepted in rounds]


@pytest.mark.parametrize(("shortest", "longest"), [(1, 5), (2, 5), (3, 4), (1, 1), (4, 4)])
def test_the_ends_of_the_threshold(tmp_path: Path, asked, shortest: int, longest: int) -> None:
    """With 1 every draft is as long as allowed; with 0, and no token sure, it ends after the first token that is judged."""
    lm = a_host()
    asked(Constant(0.9))
    spec = f"specdec-pp(draft=other, head={kept(tmp_path, lm)}, shortest={shortest}, longest={longest}, threshold="
    for temperature in (0.0, 1.0):
        for threshold, expected in ((1, longest), (0, min(longest, max(2, shortest)))):
            drafts = rounds_of(lm, f"{spec}{threshold})", [0, 1], max_new_tokens=40, seed=1, temperature=temperature)
            assert {len(draft) for draft in drafts[:-longest]} == {expected}


def test_the_threshold_meets_the_product_of_the_chances(tmp_path: Path, asked) -> None:
    """0.8^2 = 0.64 leaves a rejection at 0.36: over 0.35, not over 0.37. The newest token is never judged."""
    lm = a_host()
    asked(Constant(0.8))
    folder = kept(tmp_path, lm)
    for threshold, expected in ((0.19, 2), (0.21, 3), (0.35, 3), (0.37, 4)):
        spec = f"specdec-pp(draft=other, head={folder}, threshold={threshold}, shortest=1)"
        drafts = rounds_of(lm, spec, [0, 1], max_new_tokens=40, seed=1, temperature=1.0)
        assert {len(draft) for draft in drafts[:-5]} == {expected}


def test_a_first_draft_is_no_shorter_at_a_higher_threshold(tmp_path: Path) -> None:
    lm = a_host()
    folder = kept(tmp_path, lm)
    seen = set()
    for seed in range(20):
        lengths = []
        for threshold in (0.0, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0):
            spec = f"specdec-pp(draft=other, head={folder}, threshold={threshold}, shortest=1, longest=8)"
            drafts = rounds_of(lm, spec, [seed % 6, 1, seed % 4], max_new_tokens=12, seed=seed, temperature=1.0)
            lengths.append(len(drafts[0]))
        assert lengths == sorted(lengths)
        seen |= set(lengths)
    assert len(seen) > 4, "the head has no say"


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_how_often_head_and_drafter_are_asked(tmp_path: Path, asked, temperature: float) -> None:
    """The head k - 1 times a round, once less where a round of two or more ends with a stop token; the drafter never about a
    draft's last token."""
    lm = a_host()
    head = Constant(0.9)
    asked(head)
    folder = kept(tmp_path, lm)
    ended = 0
    for seed in range(12):
        spec = f"specdec-pp(draft=other, head={folder}, threshold={0.1 + 0.05 * seed}, shortest=1, longest=6)"
        passes: list[Forward] = []
        head.asked = 0
        drafter = lm.companion("other").network
        settings = {"max_new_tokens": 30, "seed": seed, "temperature": temperature, "stop_token_ids": (seed % 6,)}
        with watched(drafter, passes.append):
            drafts = rounds_of(lm, spec, [0, 1, seed % 5], **settings)  # type: ignore[arg-type]
        stopped = sum(len(draft) > 1 and draft[-1] == seed % 6 for draft in drafts)
        ended += stopped
        drafted = [draft for draft in drafts if draft]
        assert head.asked == sum(len(draft) - 1 for draft in drafted) - stopped
        assert len(passes) == sum(map(len, drafted))
    assert ended > 0


def target_passes(lm: LanguageModel, spec: str, temperature: float) -> tuple[int, int]:
    """Passes of the target that a draft of a first round took, and the draft's length."""
    settings = Settings(max_new_tokens=30, seed=1, temperature=temperature)
    request, method = new_request(lm, spec, [0, 1], settings)
    assert isinstance(method, specdec.SpecDecPlusPlus)
    growing = method.drafter(request).propose(request.tokens, 12)
    assert isinstance(growing, Generator)
    count, answer = 0, None
    while True:
        try:
            forward = growing.send(answer)
        except StopIteration as over:
            return count, len(over.value)
        count += forward.sequence.owner is lm.network
        [answer] = forward.sequence.owner.run([forward])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_nothing_is_asked_of_the_target_while_a_draft_grows(
    tmp_path: Path, temperature: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm = a_host()
    spec = f"specdec-pp(draft=other, head={kept(tmp_path, lm)}, threshold=0.95)"
    passes, length = target_passes(lm, spec, temperature)
    assert passes == 0
    assert length > 2

    def peeking(self: HeadStop, length: int, law: Tensor) -> Generator[Forward, Scores, bool]:
        yield Forward(lm.network.new_sequence(), [0, 1])
        return length > 3

    monkeypatch.setattr(HeadStop, "after", peeking)
    assert target_passes(lm, spec, temperature) == (4, 4), "a rule that looks at the target goes unnoticed"


class Oracle(nn.Module):
    """Knows what will become of a drafted token: in greedy decoding by the target's likeliest, at a temperature of 1 by the
    very random number that the verifier will look at."""

    def __init__(self, request: Request):
        super().__init__()
        self.request = request

    def forward(self, rows: Tensor) -> Tensor:
        host = self.request.host
        drafter = host.companion("other").network
        [prefix] = [drafter._numbered()[int(number)] for number in rows[:, 0].tolist()]  # type: ignore[attr-defined]
        *before, token = prefix
        p, q = (scorer.law(before) for scorer in (host.network, drafter))  # type: ignore[attr-defined]
        if self.request.law.greedy:
            right = int(p.argmax()) == token
        else:
            place = self.request.position + len(before) - len(self.request.tokens)
            right = self.request.noise.accept(float(p[token] / q[token]), place)
        return torch.tensor([[-math.inf, 0.0] if right else [0.0, -math.inf]])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(("shortest", "threshold"), [(1, 0.0), (2, 0.0), (2, 0.5), (1, 0.99)])
def test_with_an_oracle_a_round_discards_at_most_two(
    tmp_path: Path, asked, temperature: float, shortest: int, threshold: float
) -> None:
    """The one that is rejected, and the one that was drawn while that was judged."""
    lm = a_host()
    bounds = f"threshold={threshold}, shortest={shortest}, longest=12"
    spec = f"specdec-pp(draft=other, head={kept(tmp_path, lm)}, {bounds})"
    settings = Settings(temperature=temperature, max_new_tokens=60, seed=3)
    request, method = new_request(lm, spec, [0, 1], settings)
    asked(Oracle(request))
    finished(request, method)
    drafts = drafted_and_accepted(request)
    assert max(drafted - accepted for drafted, accepted in drafts) == 2
    assert max(accepted for _, accepted in drafts) > 2


def test_what_the_head_told_is_told_with_what_became_of_it(tmp_path: Path, asked) -> None:
    """Of the oracle's answers all come true, and tokens behind a rejected one are not counted."""
    lm = a_host()
    spec = f"specdec-pp(draft=other, head={kept(tmp_path, lm)}, threshold=1, longest=5)"
    request, method = new_request(lm, spec, [0, 1], Settings(temperature=1.0, max_new_tokens=60, seed=3))
    asked(Oracle(request))
    finished(request, method)
    judged = request.statistics.details["judged"]
    assert all(chance == accepted for chance, accepted in judged)
    rounds = [one for one in drafted_and_accepted(request) if one[0]]
    assert len(judged) == sum(min(drafted - 1, accepted + 1) for drafted, accepted in rounds)
    assert {accepted for _, accepted in judged} == {True, False}


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    lm = a_host()
    one = trained(lm, random_head(seed=3, blocks=3), threshold=0.35)
    one.write(tmp_path / "head")
    two = TrainedHead.read(tmp_path / "head")
    assert (two.target, two.draft, two.layers) == (one.target, one.draft, one.layers)
    assert (two.threshold, two.rejection_weight, two.facts, two.hidden) == (0.35, 6.0, {"seed": 0}, WIDTH)
    rows = torch.randn(5, WIDTH)
    assert torch.allclose(one.head(rows), two.head(rows), atol=1e-2)
    assert len(two.head.blocks) == 3
    with pytest.raises(MethodUnavailable, match="holds no acceptance head"):
        TrainedHead.read(tmp_path)


def test_a_head_is_what_the_paper_says() -> None:
    head = random_head(blocks=2)
    row = torch.randn(1, WIDTH)
    middle = row
    for block in head.blocks:
        assert isinstance(block, nn.Linear)
        inner = middle @ block.weight.T + block.bias
        middle = middle + inner * inner.sigmoid()
    assert torch.allclose(head(row), middle @ head.out.weight.T + head.out.bias)
    assert head.blocks[0].weight is not head.blocks[1].weight
    accepted = torch.tensor([0.0, 0.1, 0.5, 1.0])
    shifted = accepted / (accepted + 6 * (1 - accepted))
    assert torch.allclose(corrected(shifted, 6.0), accepted, atol=1e-6)


def test_the_threshold_of_the_head_is_the_default(tmp_path: Path, asked) -> None:
    lm = a_host()
    asked(Constant(0.8))
    for threshold, expected in ((0.1, 2), (0.4, 4)):
        folder = kept(tmp_path / str(expected), lm, threshold=threshold)
        drafts = rounds_of(lm, f"specdec-pp(draft=other, head={folder})", [0, 1], max_new_tokens=30, seed=1)
        assert {len(draft) for draft in drafts[:-5]} == {expected}


def test_confidence_ends_a_draft_with_the_token_that_lacks_it() -> None:
    """The drafter is sure after a 1, and after nothing else."""
    sure, unsure = [0.02, 0.96, 0.02], [0.3, 0.3, 0.4]
    given = {(0,): unsure, (1,): sure, (2,): unsure}
    drafter = TabularScorer(3, order=1, given=given, name="other")
    lm = scripted_language_model(TabularScorer(3, order=1, seed=1), drafter=drafter)
    for temperature in (0.0, 1.0):
        drafts = rounds_of(
            lm,
            "specdec-pp(draft=other, confidence=0.9, shortest=1, longest=5)",
            [1],
            max_new_tokens=60,
            seed=1,
            temperature=temperature,
        )
        for draft in (draft for draft in drafts[:-6] if len(draft) > 1):
            assert set(draft[:-2]) <= {1}, "it went on after a token that it was not sure of"
        assert {len(draft) for draft in drafts[:-6]} >= {1, 2} or temperature == 0.0


def test_what_cannot_work_is_refused(tmp_path: Path) -> None:
    lm = a_host()
    folder = kept(tmp_path / "right", lm)

    def refused(spec: str, model: LanguageModel = lm) -> str:
        with pytest.raises(MethodUnavailable) as told:
            model.generate([0, 1], spec, max_new_tokens=3)
        return str(told.value)

    assert "no acceptance head is shipped for tabular" in refused("specdec-pp(draft=other, rule=head)")
    assert "no acceptance head is shipped" in refused("specdec-pp(draft=other, threshold=0.5)")
    assert "has no hidden rows" in refused("specdec-pp(draft=ngram, rule=head)")
    assert "holds no acceptance head" in refused(f"specdec-pp(draft=other, head={tmp_path})")
    other = scripted_language_model(story_scorer(6), drafter=lm.companion("other").network)
    assert "was trained for the target tabular 6 3, and story is story" in refused(
        f"specdec-pp(draft=other, head={folder})", other
    )
    assert "was trained for the drafter" in refused(f"specdec-pp(draft=layers, head={folder})")
    few = kept(tmp_path / "few", lm, layers=2)
    assert "a draft of 2 layers, not of 1" in refused(f"specdec-pp(draft=layers, layers=1, head={few})")
    wide = kept(tmp_path / "wide", lm, head=random_head(hidden=5))
    assert "reads rows of 5 numbers, and those of tabular draft have 2" in refused(
        f"specdec-pp(draft=other, head={wide})"
    )
    with pytest.raises(BadParameter, match="shortest=5 must not exceed longest=4"):
        as_method("specdec-pp(shortest=5, longest=4)")


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_first_layers_of_a_real_network_draft(tmp_path: Path, temperature: float) -> None:
    lm = toy_language_model(seed=1, layers=3)
    folder = kept(tmp_path, lm, head=random_head(hidden=32), layers=1, threshold=0.9)
    reply = lm.generate(
        "hello", f"specdec-pp(layers=1, head={folder})", max_new_tokens=30, temperature=temperature, seed=2
    )
    assert reply.stats.models["acceptance head"].forwards > 0
    assert reply.stats.drafted > 2 * (reply.stats.rounds - 1)
    if temperature == 0:
        assert reply.token_ids == lm.generate("hello", "autoregressive", max_new_tokens=30).token_ids
