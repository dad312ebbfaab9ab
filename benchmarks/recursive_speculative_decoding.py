"""How much drawing without replacement brings: block efficiency at equal node budget, and the law at scale.

    python benchmarks/recursive_speculative_decoding.py                      block efficiency on a real model
    python benchmarks/recursive_speculative_decoding.py --draft layers       the same with the target's first layers
    python benchmarks/recursive_speculative_decoding.py --decode             the same, counted in whole decodings
    python benchmarks/recursive_speculative_decoding.py --laws               chi-square tests of the sampled law

Block efficiency is new tokens per target forward after the prompt. Every method of a comparison has the same drafter and
verifies as many nodes per round, but for the chain that is only as long as the tree.

By default all methods draft at the same places of texts that plain decoding samples, all drafters have seen the same, and what
is averaged is the exact expectation of the tokens that the verifier emits, given the tree: so differences between methods
are paired, and only the draws of trees are left to chance. With --decode every method writes its own texts. Intervals (95 %)
are over requests.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import decodery
from decodery.engine.method import Exactness, Method
from decodery.engine.registry import method as as_method
from decodery.engine.settings import Settings
from decodery.evaluation.questions import load_questions
from decodery.models.forward import Forward, tree_mask
from decodery.speculative.draft import EMPTY, ROOT
from decodery.speculative.loop import ProcessedLaws, Round
from decodery.speculative.verifiers import Verdict
from decodery.testing import TabularScorer, enumerate_outcomes, goodness_of_fit, scripted_language_model
from decodery.testing.outputs import sampled_outputs

METHOD = "recursive-speculative-decoding"
BATCH = 12
"""Requests decoded together."""


def contestants(draft: str, layers: int | None, width: int, length: int) -> dict[str, str]:
    """What is compared, by name: trees of width x length nodes, and chains of as many and of the same length."""
    drafter = f"draft={draft}" + ("" if layers is None else f", layers={layers}")
    branching = "x".join([str(width), *["1"] * (length - 1)])
    return {
        "beam (RSD-S)": f"{METHOD}({drafter}, width={width}, length={length})",
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
        return self.chance.accept(probability, position, index)

    def choose(self, probabilities: Any, position: int, stage: Any, index: int = 0) -> int:
        return 0

    def race(self, log_weights: Any, position: int, stage: Any, index: int = 0) -> int:
        return 0


class KnownLaws:
    """The target's processed laws of a draft, each computed once."""

    def __init__(self, laws: Any):
        self.laws, self.rows = laws, {}

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

    return 1.0 + sum(accepted * mass for accepted, mass in enumerate_outcomes(run).items())


def probe_of(specs: list[str], stride: int, found: dict[int, list[list[float]]]) -> Any:
    """A method that decodes plainly, and every `stride` tokens lets all `specs` draft: found[request] gets, for each
    such place, the expected tokens of each and then the nodes of each."""
    methods = [as_method(spec) for spec in specs]

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
                drafts = []
                if (request.position - len(request.prompt)) % stride == stride - 1:
                    for drafter in drafters:
                        drafts.append((yield from drafter.propose(request.tokens, 32)))
                tokens, parents, positions, first = (
                    list(pending),
                    [],
                    list(range(sequence.next_position, position + 1)),
                    [],
                )
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
                    efficiency = [expected_tokens(request, *each) for each in zip(methods, drafts, views, strict=True)]
                    found.setdefault(request.number, []).append(efficiency + [float(len(draft)) for draft in drafts])
                token = request.draw(scores.logits[0])
                before = list(request.tokens)
                over = request.commit([token], scores.logits[:1])
                seen, row = (drafts[0], views[0]) if drafts else (EMPTY, scores.logits[:1])
                for drafter in drafters:
                    drafter.observe(Round(before, seen, Verdict((), token), [token], row, {}))
                if over:
                    return

    return Probe()


def mean_and_error(groups: list[list[float]]) -> tuple[float, float]:
    """The mean of all values, and its standard error where only the groups are independent."""
    return ratio([(sum(group), len(group)) for group in groups])


def expected_block_efficiency(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row per contestant and temperature, with its difference to the first."""
    lm = decodery.load(arguments.model)
    questions = load_questions(per_category=arguments.per_category)
    prompts = [[{"role": "user", "content": question.turns[0]}] for question in questions]
    chosen = contestants(arguments.draft, arguments.layers, arguments.width, arguments.length)
    if arguments.only:
        chosen = {name: spec for name, spec in chosen.items() if name.split()[0].rstrip(",") in arguments.only}
    for temperature, top_p in arguments.settings:
        groups: list[list[list[float]]] = []
        for repeat in range(arguments.repeats):
            for start in range(0, len(prompts), BATCH):
                found: dict[int, list[list[float]]] = {}
                lm.generate(
                    prompts[start : start + BATCH],
                    method=probe_of(list(chosen.values()), arguments.stride, found),
                    temperature=temperature,
                    top_p=top_p,
                    max_new_tokens=arguments.tokens,
                    seed=arguments.seed + repeat,
                )
                groups += list(found.values())
                print(f"{sum(map(len, groups))} places", file=sys.stderr, flush=True)
        for place, (name, spec) in enumerate(chosen.items()):
            mean, error = mean_and_error([[row[place] for row in group] for group in groups])
            less, doubt = mean_and_error([[row[place] - row[0] for row in group] for group in groups])
            nodes, _ = mean_and_error([[row[len(chosen) + place] for row in group] for group in groups])
            yield {
                "method": name,
                "spec": spec,
                "temperature": temperature,
                "top_p": top_p,
                "block_efficiency": mean,
                "standard_error": error,
                "difference_to_the_first": less,
                "standard_error_of_the_difference": doubt,
                "rounds": sum(map(len, groups)),
                "nodes_per_round": nodes,
            }


def ratio(pairs: list[tuple[float, int]]) -> tuple[float, float]:
    """Total tokens over total rounds of independent requests, and its standard error (linearised)."""
    tokens, rounds = sum(t for t, _ in pairs), sum(r for _, r in pairs)
    mean = tokens / rounds
    spread = sum((t - mean * r) ** 2 for t, r in pairs) * len(pairs) / max(len(pairs) - 1, 1)
    return mean, math.sqrt(spread) / rounds


def block_efficiency(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row per contestant and temperature."""
    lm = decodery.load(arguments.model)
    questions = load_questions(per_category=arguments.per_category)
    prompts = [[{"role": "user", "content": question.turns[0]}] for question in questions]
    chosen = contestants(arguments.draft, arguments.layers, arguments.width, arguments.length)
    for temperature, top_p in arguments.settings:
        for name, spec in chosen.items():
            if arguments.only and name.split()[0].rstrip(",") not in arguments.only:
                continue
            pairs: list[tuple[float, int]] = []
            drafted = 0
            started = time.perf_counter()
            for repeat in range(arguments.repeats):
                for start in range(0, len(prompts), BATCH):
                    replies = lm.generate(
                        prompts[start : start + BATCH],
                        method=spec,
                        temperature=temperature,
                        top_p=top_p,
                        max_new_tokens=arguments.tokens,
                        seed=arguments.seed + repeat,
                    )
                    pairs += [(reply.stats.new_tokens, reply.stats.rounds) for reply in replies]
                    drafted += sum(reply.stats.drafted for reply in replies)
            mean, error = ratio(pairs)
            rounds = sum(r for _, r in pairs)
            yield {
                "method": name,
                "spec": spec,
                "temperature": temperature,
                "top_p": top_p,
                "block_efficiency": mean,
                "standard_error": error,
                "rounds": rounds,
                "nodes_per_round": drafted / rounds,
                "seconds": time.perf_counter() - started,
            }


LAWS = [
    ("tree=branching, branching=2x1", 5),
    ("tree=branching, branching=3", 6),
    ("tree=branching, branching=2x2", 4),
    ("width=2, length=2", 6),
    ("width=2, length=3", 5),
    ("width=3, length=2", 5),
    ("width=3, length=3", 4),
]
"""Parameters and vocabulary of the sampled law tests."""


def laws(arguments: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The joint law of the first two of four tokens, sampled through the whole engine, against the target's."""
    for parameters, vocabulary in LAWS:
        scorer = TabularScorer(vocabulary, order=None, seed=vocabulary)
        lm = scripted_language_model(scorer, drafter=TabularScorer(vocabulary, order=None, seed=99, name="other"))
        settings = Settings(temperature=1.0, max_new_tokens=4, seed=arguments.seed)
        spec = f"{METHOD}(draft=other, {parameters})"
        counts: Counter[tuple[int, ...]] = Counter()
        for output, count in sampled_outputs(lm, spec, [0, 1], settings, arguments.samples).items():
            counts[output[:2]] += count
        fit = goodness_of_fit(counts, scorer.joint([0, 1], 2))
        yield {
            "method": parameters,
            "vocabulary": vocabulary,
            "samples": fit.samples,
            "statistic": fit.statistic,
            "degrees": fit.degrees,
            "p_value": fit.p_value,
            "total_variation": fit.total_variation,
        }


def _setting(text: str) -> tuple[float, float]:
    temperature, _, top_p = text.partition("/")
    return float(temperature), float(top_p or 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--laws", action="store_true", help="test the sampled law instead")
    parser.add_argument("--decode", action="store_true", help="count in whole decodings")
    parser.add_argument("--stride", type=int, default=2, help="draft every so many tokens")
    parser.add_argument("--samples", type=int, default=200_000, help="outputs per law (default 200000)")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--draft", default="ngram", help="ngram, ngram-text, layers, or a model's name")
    parser.add_argument("--layers", type=int, help="how many first layers draft, with --draft layers")
    parser.add_argument("--width", type=int, default=3)
    parser.add_argument("--length", type=int, default=3)
    parser.add_argument("--per-category", type=int, default=6, help="questions of each of the six groups")
    parser.add_argument("--repeats", type=int, default=1, help="samples per question")
    parser.add_argument("--tokens", type=int, default=96, help="new tokens per request")
    parser.add_argument("--settings", type=_setting, nargs="+", default=[(1.0, 0.95), (0.3, 1.0)],
                        metavar="TEMPERATURE/TOP_P")  # fmt: skip
    parser.add_argument("--only", nargs="+", help="first words of the contestants to run")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="also write the rows here")
    arguments = parser.parse_args()
    study = laws if arguments.laws else block_efficiency if arguments.decode else expected_block_efficiency
    rows = []
    for row in study(arguments):
        rows.append(row)
        if arguments.laws:
            print(f"{row['method']:32} {row['vocabulary']} tokens, {row['samples']} samples: chi-square "
                  f"{row['statistic']:6.1f} on {row['degrees']:3}, p = {row['p_value']:.3f}", flush=True)  # fmt: skip
        else:
            line = (f"T={row['temperature']} top-p={row['top_p']}  {row['method']:20} {row['block_efficiency']:.3f} "
                    f"+- {1.96 * row['standard_error']:.3f}  {row['rounds']:6} rounds, "
                    f"{row['nodes_per_round']:.1f} nodes each")  # fmt: skip
            if not arguments.decode:
                line += (f"  less the first {row['difference_to_the_first']:+.4f} "
                         f"+- {1.96 * row['standard_error_of_the_difference']:.4f}")  # fmt: skip
            print(line, flush=True)
        if arguments.json:
            arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
