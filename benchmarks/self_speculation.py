"""What self-speculation can gain on a model: exits with and without adapters, sets of sublayers, and the methods' counts.

    python benchmarks/self_speculation.py --model smollm2-135m --json study.json

Sections: exits (how often an exit agrees with the model, and what a draft of one token gains by the cost model), del and
swift (counts of the methods beside plain decoding; seconds only as ratios of this run), sets (matchness of sets of
attentions and feed-forwards), scoring (forwards that a search spends by its way of scoring). Texts are the model's greedy
answers to decodery's own questions.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

import decodery
from decodery.evaluation.questions import load_questions
from decodery.language_model import LanguageModel
from decodery.models.forward import Forward, Rows, Slots
from decodery.speculative.del_.exit_choice import Price
from decodery.speculative.del_.exits import ExitAdapters, shipped
from decodery.speculative.swift.layer_search import LayerSearch, LayerSet

Row = dict[str, Any]
Text = tuple[list[int], list[int]]
RATIOS = (0.05, 0.1, 0.15, 0.25, 0.45)
RANDOM_SETS = 25
SECTIONS = ("exits", "del", "sets", "scoring", "swift")
REMOVED = (4, 8, 12, 16, 20)


def answers(lm: LanguageModel, count: int, tokens: int) -> list[Text]:
    """Greedy answers to questions that are spread over the categories: (prompt, output)."""
    questions = load_questions()
    prompts = [_ids(lm, q.turns[0]) for q in questions[:: max(1, len(questions) // count)][:count]]
    replies = lm.generate(prompts, method="autoregressive", max_new_tokens=tokens, ignore_eos=True)
    return [(list(reply.prompt_token_ids), reply.token_ids) for reply in replies]


def _ids(lm: LanguageModel, question: str) -> list[int]:
    if getattr(lm.tokenizer, "chat_template", None):
        return lm.tokenize([{"role": "user", "content": question}])
    return lm.tokenize(question)


def exit_rows(lm: LanguageModel, texts: Sequence[Text], exits: Sequence[int]) -> list[Row]:
    """Agreement of exits with the model's likeliest token, raw and adapted, and the gain of drafting one token there."""
    network = lm.network
    folder = shipped(network.fingerprint())
    adapters = None if folder is None else ExitAdapters.read(folder)
    head, short = network.head(), None if adapters is None else network.head(adapters.tokens)
    right: dict[int, list[float]] = {exit: [0.0, 0.0] for exit in exits}
    positions = covered = 0
    for prompt, output in texts:
        taps = tuple(exit - 1 for exit in exits)
        ask = Forward(
            network.new_sequence(),
            [*prompt, *output[:-1]],
            taps=taps,
            logits=range(len(prompt) - 1, len(prompt) + len(output) - 1),
        )
        scores = network.run([ask])[0]
        best = scores.logits.argmax(dim=-1)
        positions += len(best)
        if adapters is not None:
            covered += int(torch.isin(best, adapters.tokens).sum())
        for exit in exits:
            rows = scores.hidden[exit - 1][len(prompt) - 1 :]
            right[exit][0] += float((head(rows).argmax(dim=-1) == best).sum())
            if adapters is not None and short is not None and exit in adapters.exits:
                found = adapters.tokens[short(adapters.apply(exit, rows)).argmax(dim=-1)]
                right[exit][1] += float((found == best).sum())
    work = network.work
    full = work.head / work.layer
    table = []
    for exit in exits:
        raw = right[exit][0] / positions
        row: Row = {
            "exit": exit,
            "raw agreement": raw,
            "gain of one, raw": (1 + raw) * (network.layers + full) / Price(network.layers, full, full)(exit, 1),
        }
        if adapters is not None and exit in adapters.exits:
            down, up = adapters.weights[exit]
            cost = full * len(adapters.tokens) / network.vocabulary + (down.numel() + up.numel()) / work.layer
            rate = right[exit][1] / positions
            price = Price(network.layers, cost, full)
            row |= {
                "adapted agreement": rate,
                "gain of one, adapted": (1 + rate) * (network.layers + full) / price(exit, 1),
                "coverage of draft vocabulary": covered / positions,
            }
        table.append(row | {"positions": positions})
    return table


def method_rows(lm: LanguageModel, texts: Sequence[Text], tokens: int, specs: Sequence[str]) -> list[Row]:
    """Counts of methods on the same prompts. layer rows: rows times layers, per new token, without heads.

    The methods take turns on each prompt, and the ratio of times is the median over prompts: a busy machine harms all alike.
    """
    every = ("autoregressive", *specs)
    replies: dict[str, list[Any]] = {spec: [] for spec in every}
    lm.forget("study")
    for prompt, _ in texts:
        for spec in every:
            settings = {"max_new_tokens": tokens, "ignore_eos": True, "session": "study"}
            replies[spec].append(lm.generate(prompt, method=spec, **settings))
    plain = replies["autoregressive"]
    table: list[Row] = []
    for spec, given in replies.items():
        stats = [reply.stats for reply in given]
        total = sum(s.new_tokens for s in stats)
        drafted, accepted = sum(s.drafted for s in stats), sum(s.accepted for s in stats)
        models = [model for s in stats for model in s.models.values()]
        ratios = [one.stats.seconds / other.seconds for one, other in zip(plain, stats, strict=True)]
        table.append(
            {
                "method": spec,
                "MAL": total / sum(s.rounds for s in stats),
                "drafted": drafted,
                "accepted": accepted / drafted if drafted else 0.0,
                "forwards per token": sum(m.forwards for m in models) / total,
                "layer rows per token": sum(m.layer_rows for m in models) / total,
                "time of plain / time": float(np.median(ratios)),
                "identical": sum(r.token_ids == p.token_ids for r, p in zip(given, plain, strict=True)) / len(plain),
            }
        )
    return table


class Matchness:
    """Scores sets on several texts in one packed pass: the first `window` + 1 tokens of each, after the prompt's own rows."""

    def __init__(self, lm: LanguageModel, texts: Sequence[Text], window: int):
        self._network, self.forwards = lm.network, 0
        self._asks: list[tuple[Any, list[int], list[int]]] = []
        for prompt, output in texts:
            sequence = lm.network.new_sequence()
            lm.network.run([Forward(sequence, prompt, logits=Rows.NONE)])
            self._asks.append((sequence, output[:window], output[1 : window + 1]))

    def __call__(self, chosen: LayerSet) -> float:
        self.forwards += 1
        asks = [Forward(s, fed, slots=Slots.NOWHERE, layers=chosen.layers()) for s, fed, _ in self._asks]
        found = [scores.logits.argmax(dim=-1) for scores in self._network.run(asks)]
        true = [torch.tensor(after) for _, _, after in self._asks]
        return float((torch.cat(found) == torch.cat(true)).float().mean())


class AcceptedLength(Matchness):
    """Scores sets by drafting with them instead: tokens until the first wrong one, over `window`. Each costs `window` passes,
    because a draft is known to be wrong only when it is verified."""

    def __call__(self, chosen: LayerSet) -> float:
        last = [fed[0] for _, fed, _ in self._asks]
        drafts: list[list[int]] = [[] for _ in self._asks]
        starts = [sequence.length for sequence, _, _ in self._asks]
        for _ in self._asks[0][1]:
            self.forwards += 1
            asks = [
                Forward(s, [token], layers=chosen.layers()) for (s, _, _), token in zip(self._asks, last, strict=True)
            ]
            last = [int(scores.logits[0].argmax()) for scores in self._network.run(asks)]
            for draft, token in zip(drafts, last, strict=True):
                draft.append(token)
        right = 0
        for (sequence, _, true), draft, start in zip(self._asks, drafts, starts, strict=True):
            sequence.truncate(start)
            right += next((place for place, token in enumerate(true) if draft[place] != token), len(true))
        return right / sum(len(true) for _, _, true in self._asks)


def scoring_rows(score: Matchness, other: AcceptedLength, layers: int, iterations: int) -> list[Row]:
    """The same search with either way of scoring: forwards spent, and the matchness of what it found."""
    table: list[Row] = []
    for name, scorer in (("matchness", score), ("accepted length of one draft", other)):
        before = scorer.forwards
        _, found = search(scorer, layers, skip_ratio=0.15, max_iterations=iterations, seed=0)
        spent = scorer.forwards - before
        table.append({"scored by": name, "candidates": iterations, "forwards": spent, "matchness": score(found)})
    for row in table:
        row["forwards / matchness's"] = row["forwards"] / table[0]["forwards"]
    return table


def search(score: Callable[[LayerSet], float], layers: int, **options: Any) -> tuple[float, LayerSet]:
    """The best set of a whole search, and its matchness."""
    found = LayerSearch(layers, max_tolerance=10**6, max_score=1.0, **options)
    while found.optimising:
        candidate = found.candidate()
        found.register(candidate, score(candidate))
    return found.best_score, found.current


def set_rows(score: Matchness, lm: LanguageModel, iterations: int, seeds: int, keep: Path | None) -> list[Row]:
    """Matchness of sets: every second layer, random ones, those of single least harm, and those that searches find."""
    layers = lm.network.layers
    unified = LayerSearch(layers, 0.5).current
    table: list[Row] = [
        {"set": "nothing", "size": 0, "matchness": score(LayerSet())},
        {"set": "every second layer", "size": len(unified), "matchness": score(unified)},
    ]
    for ratio in RATIOS:
        random = LayerSearch(layers, ratio, bayes_interval=0)
        values = [score(random.candidate()) for _ in range(RANDOM_SETS)]
        table.append({"set": f"random, r = {ratio}: mean", "size": random.size, "matchness": float(np.mean(values))})
        table.append(
            {"set": f"random, r = {ratio}: best of {RANDOM_SETS}", "size": random.size, "matchness": max(values)}
        )
    singles = [("attention", i) for i in range(1, layers - 1)] + [("mlp", i) for i in range(1, layers - 1)]
    harm = {one: 1 - score(_set([one])) for one in singles}
    order = sorted(singles, key=lambda one: (harm[one], one))
    best: tuple[float, LayerSet] = (0.0, LayerSet())
    for count in REMOVED:
        if count < len(order):
            chosen = _set(order[:count])
            value = score(chosen)
            best = (value, chosen) if count == REMOVED[0] else best
            table.append({"set": "least harm one by one", "size": count, "matchness": value})
    worst = ", ".join(f"{kind} {layer}" for kind, layer in order[::-1][:4])
    table.append({"set": f"most harm alone: {worst}", "size": 1, "matchness": 1 - harm[order[-1]]})
    for name, options, runs in (
        ("random and Gaussian process", {}, seeds),
        ("random alone", {"bayes_interval": 0}, seeds),
        ("whole layers, random and Gaussian process", {"whole_layers": True}, min(seeds, 2)),
    ):
        size = LayerSearch(layers, 0.15, **options).size * (2 if options.get("whole_layers") else 1)
        found = [
            search(score, layers, skip_ratio=0.15, max_iterations=iterations, seed=seed, **options)
            for seed in range(runs)
        ]
        label = f"search, r = 0.15, {iterations} candidates: {name}, mean of {runs} seeds"
        table.append({"set": label, "size": size, "matchness": float(np.mean([value for value, _ in found]))})
    if keep is not None:
        best[1].write(keep, best[0], lm.network.fingerprint())
    return table


def _set(parts: Sequence[tuple[str, int]]) -> LayerSet:
    chosen = {kind: frozenset(layer for other, layer in parts if other == kind) for kind in ("attention", "mlp")}
    return LayerSet(chosen["attention"], chosen["mlp"])


def show(console: Console, title: str, rows: Sequence[Row]) -> None:
    """Print a section as a table."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = Table(*names, title=title)
    for row in rows:
        cells = [row.get(name, "") for name in names]
        table.add_row(*(f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in cells))
    console.print(table)


def main() -> None:
    """The command line of the study."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--sections", nargs="+", default=list(SECTIONS), choices=SECTIONS)
    parser.add_argument("--questions", type=int, default=12, help="texts of the sections exits, del and swift")
    parser.add_argument("--tokens", type=int, default=64, help="length of these texts")
    parser.add_argument(
        "--exits", type=int, nargs="+", help="exits to compare; default: those with adapters, and some deep ones"
    )
    parser.add_argument("--methods", nargs="+", help="of sections del and swift, instead of theirs")
    parser.add_argument("--texts", type=int, default=2, help="texts that a set is scored on")
    parser.add_argument("--window", type=int, default=32, help="tokens of each")
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument(
        "--keep-set", type=Path, default=Path("layer-set.json"), help="where the set of section sets is kept for swift"
    )
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    console = Console(width=160)
    lm = decodery.load(given.model, dtype=given.dtype)
    texts = answers(lm, given.questions, max(given.tokens, given.window + 1))
    layers = lm.network.layers
    result: dict[str, Any] = {
        "model": given.model,
        "dtype": str(lm.network.dtype),
        "arguments": {k: str(v) for k, v in vars(given).items()},
    }
    if "exits" in given.sections:
        deep = [layers // 2, 2 * layers // 3, layers - 5, layers - 1]
        result["exits"] = exit_rows(lm, texts, given.exits or sorted({4, 5, 6, 8, 10, *deep}))
        show(console, f"Exits of {given.model}", result["exits"])
    if "del" in given.sections:
        folder = shipped(lm.network.fingerprint())
        shallow = "4+5+6+8+10"
        specs = (
            [
                "del",
                "del(bypass=False)",
                "del(bypass=False, policy=fixed)",
                "del(exit=5, length=1)",
                "del(exit=5, length=2)",
            ]
            if folder
            else []
        )
        specs += [
            f"del(adapters=off, exits={shallow})",
            f"del(adapters=off, exits={shallow}, bypass=False)",
            "del(adapters=off, exit=5, length=1)",
        ]
        result["del"] = method_rows(lm, texts, given.tokens, given.methods or specs)
        show(console, f"del on {given.model}", result["del"])
    if "sets" in given.sections:
        score = Matchness(lm, texts[: given.texts], given.window)
        result["sets"] = set_rows(score, lm, given.iterations, given.seeds, given.keep_set)
        show(console, f"Sets of {given.model} ({given.texts} x {given.window} tokens)", result["sets"])
    if "scoring" in given.sections:
        chosen = texts[: given.texts]
        result["scoring"] = scoring_rows(
            Matchness(lm, chosen, given.window), AcceptedLength(lm, chosen, given.window), layers, given.iterations
        )
        show(console, f"Ways of scoring a set of {given.model}, r = 0.15", result["scoring"])
    if "swift" in given.sections:
        specs = ["swift", "swift(bypass=False)", "swift(bypass=False, optimise=False)"]
        if given.keep_set.exists():
            specs += [
                f"swift(layer_set='{given.keep_set}', bypass=False{more})"
                for more in ("", ", top_k=1", ", top_k=1, stop_threshold=0.5")
            ]
        result["swift"] = method_rows(lm, texts, given.tokens, given.methods or specs)
        show(console, f"swift on {given.model}", result["swift"])
    if given.json is not None:
        given.json.write_text(json.dumps(result, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
