"""How much drawing without replacement brings: block efficiency at equal node budget, and the law at scale.

Block efficiency is new tokens per target forward after the prompt. Every method has the same drafter and verifies as many nodes
per round, but for the chain that is only as long as the tree. `expected`: all methods draft at the same places of texts that
plain decoding samples, all drafters have seen the same, and what is averaged is the exact expectation of the tokens that the
verifier emits, given the tree: only the draws of trees are left to chance. `decoded`: every method writes its own texts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from decodery.engine.method import Exactness, Method
from decodery.engine.registry import method as as_method
from decodery.engine.settings import Settings as Decoding
from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study, once_per_item
from decodery.evaluation.questions import Question
from decodery.models.forward import Forward, tree_mask
from decodery.speculative.draft import EMPTY, ROOT
from decodery.speculative.loop import ProcessedLaws, Round
from decodery.speculative.verifiers import Verdict
from decodery.testing import TabularScorer, enumerate_outcomes, goodness_of_fit, scripted_language_model
from decodery.testing.outputs import sampled_outputs
from experiments.texts import NODES, TOKENS_PER_ROUND, Asked, decoding, loaded, prompt_of, questions_of

METHOD = "recursive-speculative-decoding"
BEAM = "beam (RSD-S)"
LEAST = 0.001
"""Below this probability a law counts as refuted."""
LAWS = (
    ("tree=branching, branching=2x1", 5),
    ("tree=branching, branching=3", 6),
    ("tree=branching, branching=2x2", 4),
    ("width=2, length=2", 6),
    ("width=2, length=3", 5),
    ("width=3, length=2", 5),
    ("width=3, length=3", 4),
)
"""Parameters and vocabulary of the sampled law tests."""


@dataclass(frozen=True)
class Settings(Asked):
    temperature: float = 1.0
    top_p: float = 1.0
    stride: int = 2
    draft: str = "ngram"
    layers: int = 0
    width: int = 3
    length: int = 3
    samples: int = 2000
    repeats: int = 3


def contestants(settings: Settings) -> dict[str, str]:
    """What is compared, by name: trees of width x length nodes, and chains of as many and of the same length."""
    width, length = settings.width, settings.length
    drafter = f"draft={settings.draft}" + (f", layers={settings.layers}" if settings.layers else "")
    branching = "x".join([str(width), *["1"] * (length - 1)])
    return {
        BEAM: f"{METHOD}({drafter}, width={width}, length={length})",
        "branching (RSD-C)": f'{METHOD}({drafter}, tree=branching, branching="{branching}")',
        "independent tree": f"draft-model({drafter}, width={width}, length={length})",
        "spectr": f"spectr({drafter}, drafts={width}, length={length})",
        "chain, same nodes": f"draft-model({drafter}, length={width * length})",
        "chain, same length": f"draft-model({drafter}, length={length})",
    }


class OnlyAcceptance:
    """A chance for which it does not matter which token ends a round."""

    def __init__(self, chance: Any):
        self.chance = chance

    def accept(self, probability: float, position: int, index: int = 0) -> bool:
        return bool(self.chance.accept(probability, position, index))

    def choose(self, probabilities: Any, position: int, stage: Any, index: int = 0) -> int:
        return 0

    def race(self, log_weights: Any, position: int, stage: Any, index: int = 0) -> int:
        return 0


class KnownLaws:
    """The target's processed laws of a draft, each computed once."""

    def __init__(self, laws: Any):
        self.laws = laws
        self.rows: dict[int, Any] = {}

    def __getitem__(self, row: int) -> Any:
        if row not in self.rows:
            self.rows[row] = self.laws[row]
        return self.rows[row]


def expected_tokens(request: Any, method: Any, draft: Any, logits: Any) -> float:
    """The expectation of the tokens that a round with this draft emits. logits: [n + 1, vocabulary] raw scores."""
    laws = KnownLaws(ProcessedLaws(request, draft, logits))
    verifier = method.judge(draft, request.law.greedy)

    def run(chance: Any) -> int:
        return len(verifier.verify(draft, laws, OnlyAcceptance(chance), request.position).path)

    return float(1.0 + sum(accepted * mass for accepted, mass in enumerate_outcomes(run).items()))


def probe_of(specs: list[str], stride: int, found: list[list[tuple[float, int]]]) -> Method:
    """A method that decodes plainly, and every `stride` tokens lets all `specs` draft: `found` gets, for each such place, the
    expected tokens and the nodes of each."""
    methods: list[Any] = [as_method(spec) for spec in specs]

    @dataclass(frozen=True)
    class Probe(Method):
        """Plain decoding that watches others draft."""

        name: ClassVar[str] = "probe"
        title: ClassVar[str] = "probe"
        paper: ClassVar[str] = "none"
        exactness: ClassVar[Exactness] = Exactness.IDENTICAL_TO_SAMPLING
        family: ClassVar[str] = "speculative"

        def decode(self, request: Any) -> Any:
            drafters = [method.drafter(request) for method in methods]
            sequence = request.new_sequence()
            while True:
                pending = request.tokens[sequence.length :]
                start, position = sequence.length + len(pending), sequence.next_position + len(pending) - 1
                drafts: list[Any] = []
                if (request.position - len(request.prompt)) % stride == stride - 1:
                    for drafter in drafters:
                        drafts.append((yield from drafter.propose(request.tokens, 32)))
                tokens, first = list(pending), []
                parents: list[int] = []
                positions = list(range(sequence.next_position, position + 1))
                for draft in drafts:
                    first.append(len(parents))
                    tokens += draft.tokens
                    positions += [position + depth for depth in draft.depths()]
                    parents += [parent if parent == ROOT else parent + first[-1] for parent in draft.parents]
                mask = tree_mask(sequence.length, len(pending), parents)
                rows = range(len(pending) - 1, len(tokens))
                scores = yield Forward(sequence, tokens, positions, mask, logits=rows)
                sequence.truncate(start)
                views = [
                    scores.logits[[0, *range(at + 1, at + 1 + len(d))]] for at, d in zip(first, drafts, strict=True)
                ]
                if drafts:
                    each = zip(methods, drafts, views, strict=True)
                    found.append([(expected_tokens(request, m, d, v), len(d)) for m, d, v in each])
                token = request.draw(scores.logits[0])
                before = list(request.tokens)
                over = request.commit([token], scores.logits[:1])
                seen, row = (drafts[0], views[0]) if drafts else (EMPTY, scores.logits[:1])
                for drafter in drafters:
                    drafter.observe(Round(before, seen, Verdict((), token), [token], row, {}))
                if over:
                    return

    return Probe()


def expected(settings: Settings) -> Study:
    lm, chosen = loaded(settings.model), contestants(settings)

    @once_per_item
    def places(question: Question) -> list[list[tuple[float, int]]]:
        found: list[list[tuple[float, int]]] = []
        lm.generate(
            prompt_of(lm, question),
            method=probe_of(list(chosen.values()), settings.stride, found),
            temperature=settings.temperature,
            top_p=settings.top_p,
            max_new_tokens=settings.tokens,
            seed=settings.seed,
        )
        return found

    def arm(number: int, name: str) -> Arm:
        def measure(question: Question) -> Mapping[str, float]:
            told = [place[number] for place in places(question)]
            return {
                "tokens": sum(tokens for tokens, _ in told),
                "drafted": float(sum(nodes for _, nodes in told)),
                "rounds": float(len(told)),
            }

        return Arm(name, measure)

    less = Figure(
        "less the beam", derive=lambda look, arm: look(arm, "tokens/round") - look(BEAM, "tokens/round"), form="+.3f"
    )
    return Study(
        f"Expected tokens of a round at the same places (every {settings.stride} tokens) of texts of at most {settings.tokens} "
        f"tokens, sampled at temperature {settings.temperature} and top-p {settings.top_p}, drafter {settings.draft}.",
        questions_of(settings),
        [arm(number, name) for number, name in enumerate(chosen)],
        (Figure("tokens/round", "tokens", per="rounds", form=".3f"), less, NODES),
        (
            PublishedClaim("without replacement beats independent draws", "tokens/round", BEAM, "independent tree"),
            PublishedClaim("the beam beats SpecTr at equal length", "tokens/round", BEAM, "spectr"),
            PublishedClaim("a tree beats a chain of its length", "tokens/round", BEAM, "chain, same length"),
        ),
        "tree",
        lm,
    )


def decoded(settings: Settings) -> Study:
    lm, chosen = loaded(settings.model), contestants(settings)
    arms = decoding(lm, list(chosen.values()), settings, settings.temperature, top_p=settings.top_p)
    arms = [Arm(name, arm.measure) for name, arm in zip(chosen, arms, strict=True)]
    return Study(
        f"Whole decodings of at most {settings.tokens} tokens at temperature {settings.temperature}, drafter {settings.draft}.",
        questions_of(settings),
        arms,
        (TOKENS_PER_ROUND, NODES),
        (PublishedClaim("a tree beats a chain of its length", "tokens/round", BEAM, "chain, same length"),),
        "tree",
        lm,
    )


def laws(settings: Settings) -> Study:
    """The joint law of the first two of four tokens, sampled through the whole engine, against the target's."""

    def arm(parameters: str, vocabulary: int) -> Arm:
        def measure(seed: int) -> Mapping[str, float]:
            scorer = TabularScorer(vocabulary, order=None, seed=vocabulary)
            lm = scripted_language_model(scorer, drafter=TabularScorer(vocabulary, order=None, seed=99, name="other"))
            given = Decoding(temperature=1.0, max_new_tokens=4, seed=seed)
            counts: Counter[tuple[int, ...]] = Counter()
            outputs = sampled_outputs(lm, f"{METHOD}(draft=other, {parameters})", [0, 1], given, settings.samples)
            for output, count in outputs.items():
                counts[output[:2]] += count
            fit = goodness_of_fit(counts, scorer.joint([0, 1], 2))
            return {"statistic": fit.statistic / fit.degrees, "fits": float(fit.p_value > LEAST)}

        return Arm(f"{parameters}; {vocabulary} tokens", measure)

    arms = [arm(*law) for law in LAWS]
    return Study(
        f"The first two of four tokens of a random model; an item is {settings.samples} samples of one seed. A law fits where "
        f"chi-square has a probability above {LEAST}.",
        [settings.seed + number for number in range(settings.repeats)],
        arms,
        (Figure("chi-square / degrees", "statistic"), Figure("fits", "fits", form=".0%", share=True)),
        [PublishedClaim("the output has the target's law", "fits", arm.name, every=True) for arm in arms],
        "tree; vocabulary",
    )


EXPERIMENT = Experiment(
    "recursive_speculative_decoding",
    "Drawing without replacement: block efficiency at equal budget, and the law",
    "Jeon et al., Recursive Speculative Decoding, 2024, arXiv 2402.14160",
    (
        "decodery.speculative.recursive_speculative_decoding",
        "decodery.speculative.draft_laws.growth",
        "decodery.speculative.draft_laws.laws",
        "decodery.speculative.verifiers",
    ),
    Settings(),
    {"expected": expected, "decoded": decoded, "laws": laws},
)
