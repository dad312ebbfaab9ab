"""What self-speculation can gain on a model: exits with and without adapters, sets of sublayers, and the methods' counts.

`exits`: how often an exit agrees with the model, and what a draft of one token gains by the cost model. `del`, `swift`: counts
of the methods beside plain decoding; seconds only as ratios of this run. `sets`: matchness of sets of attentions and
feed-forwards. `scoring`: forwards that a search spends by its way of scoring. Texts are the model's greedy answers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study, once_per_item
from decodery.evaluation.recorded import Recorded
from decodery.language_model import LanguageModel
from decodery.models.forward import Forward, Rows, Slots
from decodery.speculative.del_.exit_choice import ExitPrice
from decodery.speculative.del_.exits import ExitAdapters, shipped
from decodery.speculative.swift.layer_search import LayerSearch, LayerSet
from experiments.texts import ACCEPTED, TOKENS_PER_ROUND, Asked, loaded, prompt_of, questions_of, recorded

RATIOS = (0.05, 0.1, 0.15, 0.25, 0.45)
REMOVED = (4, 8, 12, 16, 20)


@dataclass(frozen=True)
class Settings(Asked):
    per_category: int = 1
    tokens: int = 48
    texts: int = 2
    window: int = 32
    iterations: int = 200
    searches: int = 2
    random_sets: int = 25
    exits: tuple[int, ...] = (4, 5, 6, 8, 10, 15, 20, 25, 29)


def exits(settings: Settings) -> Study:
    lm = loaded(settings.model)
    network = lm.network
    folder = shipped(network.fingerprint())
    adapters = None if folder is None else ExitAdapters.read(folder)
    head, short = network.head(), None if adapters is None else network.head(adapters.tokens)
    work = network.work
    full = work.head / work.layer
    chosen = [exit for exit in settings.exits if exit < network.layers]

    @once_per_item
    def scored(number: int) -> tuple[Any, Any]:
        text = texts[number]
        ask = Forward(
            network.new_sequence(),
            text.tokens[:-1],
            taps=tuple(exit - 1 for exit in chosen),
            logits=range(text.start - 1, len(text.tokens) - 1),
        )
        scores = network.run([ask])[0]
        return scores.logits.argmax(dim=-1), {exit: scores.hidden[exit - 1][text.start - 1 :] for exit in chosen}

    def arm(exit: int) -> Arm:
        def measure(number: int) -> Mapping[str, float]:
            best, hidden = scored(number)
            rows = hidden[exit]
            told = {"positions": float(len(best)), "raw": float((head(rows).argmax(dim=-1) == best).sum())}
            if adapters is not None and short is not None and exit in adapters.exits:
                found = adapters.tokens[short(adapters.apply(exit, rows)).argmax(dim=-1)]
                told["adapted"] = float((found == best).sum())
                told["covered"] = float(torch.isin(best, adapters.tokens).sum())
            return told

        return Arm(str(exit), measure)

    def price(exit: int, adapted: bool) -> float:
        if not adapted or adapters is None:
            return float(ExitPrice(network.layers, full, full)(exit, 1))
        down, up = adapters.weights[exit]
        cost = full * len(adapters.tokens) / network.vocabulary + (down.numel() + up.numel()) / work.layer
        return float(ExitPrice(network.layers, cost, full)(exit, 1))

    def gain(name: str, adapted: bool) -> Figure:
        return Figure(
            f"gain of drafting one token, {name}",
            derive=lambda look, arm: (
                (1 + look(arm, f"agreement, {name}")) * (network.layers + full) / price(int(arm), adapted)
                if not adapted or (adapters is not None and int(arm) in adapters.exits)
                else np.full(1, np.nan)
            ),
        )

    texts = recorded(settings)
    figures = [Figure("agreement, own head", "raw", per="positions", form=".3f"), gain("own head", False)]
    claims: list[PublishedClaim] = []
    if adapters is not None:
        figures += [Figure("agreement, adapter", "adapted", per="positions", form=".3f"), gain("adapter", True)]
        figures.append(Figure("covered by the draft vocabulary", "covered", per="positions", form=".0%"))
        name = str(adapters.exits[0])
        claims.append(
            PublishedClaim("an early exit pays with training", "gain of drafting one token, adapter", name, 1.0)
        )
    return Study(
        "Greedy answers; an exit agrees where its likeliest token is the model's. Gain: tokens by counted "
        "work, over plain decoding.",
        list(range(len(texts))),
        [arm(exit) for exit in chosen],
        figures,
        claims,
        "exit after layer",
        lm,
    )


def methods(settings: Asked, specs: Sequence[str], claims: Sequence[PublishedClaim]) -> Study:
    """Counts of methods on the same prompts, in one session each. Layer rows: rows times layers, per "
    "new token, without heads."""
    lm = loaded(settings.model)
    lm.forget("study")

    def answer(question: Any, spec: str) -> Any:
        return lm.generate(
            prompt_of(lm, question), method=spec, max_new_tokens=settings.tokens, ignore_eos=True, session="study"
        )

    @once_per_item
    def plain(question: Any) -> Any:
        return answer(question, "autoregressive")

    def arm(spec: str) -> Arm:
        def measure(question: Any) -> Mapping[str, float]:
            first = plain(question)
            reply = first if spec == "autoregressive" else answer(question, spec)
            stats = reply.stats
            return {
                "tokens": float(stats.new_tokens),
                "rounds": float(stats.rounds),
                "drafted": float(stats.drafted),
                "accepted": float(stats.accepted),
                "seconds": stats.seconds,
                "forwards": float(sum(model.forwards for model in stats.models.values())),
                "layer rows": float(sum(model.layer_rows for model in stats.models.values())),
                "identical": float(reply.token_ids == first.token_ids),
            }

        return Arm(spec, measure)

    figures = (
        TOKENS_PER_ROUND,
        ACCEPTED,
        Figure("forwards/token", "forwards", per="tokens"),
        Figure("layer rows/token", "layer rows", per="tokens", form=".0f"),
        Figure("speed", "tokens", per="seconds", against="autoregressive", unit="x"),
        Figure("identical", "identical", form=".0%", share=True),
    )
    about = f"Answers of {settings.tokens} tokens, greedy; speed is a ratio within this run."
    arms = [arm(spec) for spec in ("autoregressive", *specs)]
    return Study(about, questions_of(settings), arms, figures, claims, lm=lm)


def early_exits(settings: Settings) -> Study:
    shallow = "4+5+6+8+10"
    specs = [
        f"del(adapters=off, exits={shallow})",
        f"del(adapters=off, exits={shallow}, bypass=False)",
        "del(adapters=off, exit=5, length=1)",
    ]
    claims = []
    if shipped(loaded(settings.model).network.fingerprint()):
        own = [
            "del",
            "del(bypass=False)",
            "del(bypass=False, policy=fixed)",
            "del(exit=5, length=1)",
            "del(exit=5, length=2)",
        ]
        specs = [*own, *specs]
        claims = [PublishedClaim("early exits make decoding faster", "speed", "del(bypass=False)", 1.0)]
    return methods(settings, specs, claims)


def layer_sets(settings: Settings) -> Study:
    specs = ["swift", "swift(bypass=False)", "swift(bypass=False, optimise=False)"]
    claims = [
        PublishedClaim("sublayers that are left out make decoding faster", "speed", "swift(bypass=False)", 1.0),
        PublishedClaim("the search finds sets that are accepted more", "accepted", "swift(bypass=False)", specs[2]),
    ]
    return methods(settings, specs, claims)


class Matchness:
    """Scores sets on one text: the first `window` + 1 tokens after the prompt's own rows, in one pass."""

    def __init__(self, lm: LanguageModel, text: Recorded, window: int):
        self._network, self.forwards = lm.network, 0
        output = text.tokens[text.start :]
        self._sequence = lm.network.new_sequence()
        lm.network.run([Forward(self._sequence, text.tokens[: text.start], logits=Rows.NONE)])
        self._fed, self._after = output[:window], output[1 : window + 1]

    def __call__(self, chosen: LayerSet) -> float:
        self.forwards += 1
        ask = Forward(self._sequence, self._fed, slots=Slots.NOWHERE, layers=chosen.layers())
        found = self._network.run([ask])[0].logits.argmax(dim=-1)
        return float((found[: len(self._after)] == torch.tensor(self._after)).float().mean())


class AcceptedLength(Matchness):
    """Scores sets by drafting with them instead: tokens until the first wrong one, over the window. Each costs as many
    passes as
    the window has tokens, because a draft is known to be wrong only when it is verified."""

    def __call__(self, chosen: LayerSet) -> float:
        last, start = self._fed[0], self._sequence.length
        draft: list[int] = []
        for _ in self._after:
            self.forwards += 1
            ask = Forward(self._sequence, [last], layers=chosen.layers())
            last = int(self._network.run([ask])[0].logits[0].argmax())
            draft.append(last)
        self._sequence.truncate(start)
        right = next((i for i, (a, b) in enumerate(zip(draft, self._after, strict=True)) if a != b), len(draft))
        return right / len(self._after)


def search(score: Callable[[LayerSet], float], layers: int, **options: Any) -> LayerSet:
    """The best set of a whole search."""
    found = LayerSearch(layers, max_tolerance=10**6, max_score=1.0, **options)
    while found.optimising:
        candidate = found.candidate()
        found.register(candidate, score(candidate))
    return found.current


def _scorers(settings: Settings, kind: type[Matchness]) -> list[Matchness]:
    lm = loaded(settings.model)
    asked = Settings(settings.model, settings.questions, settings.per_category, settings.window + 8, settings.seed)
    texts = [text for text in recorded(asked) if len(text.tokens) - text.start > settings.window]
    return [kind(lm, text, settings.window) for text in texts[: settings.texts]]


def _set(parts: Sequence[tuple[str, int]]) -> LayerSet:
    chosen = {kind: frozenset(layer for other, layer in parts if other == kind) for kind in ("attention", "mlp")}
    return LayerSet(chosen["attention"], chosen["mlp"])


def sets(settings: Settings) -> Study:
    """An item is a text; sets are chosen for each text by itself."""
    lm = loaded(settings.model)
    layers, scorers = lm.network.layers, _scorers(settings, Matchness)
    arms: list[Arm] = []

    def fixed(name: str, chosen: Sequence[LayerSet], best: bool = False) -> None:
        def measure(text: int) -> Mapping[str, float]:
            values = [scorers[text](one) for one in chosen]
            return {"matchness": max(values) if best else float(np.mean(values)), "left out": float(len(chosen[0]))}

        arms.append(Arm(name, measure))

    unified = LayerSearch(layers, 0.5).current
    fixed("nothing", [LayerSet()])
    fixed("every second layer", [unified])
    for ratio in RATIOS:
        random = LayerSearch(layers, ratio, bayes_interval=0)
        drawn = [random.candidate() for _ in range(settings.random_sets)]
        fixed(f"random, r = {ratio}", drawn)
        fixed(f"random, r = {ratio}, best of {len(drawn)}", drawn, best=True)
    singles = [(kind, layer) for kind in ("attention", "mlp") for layer in range(1, layers - 1)]

    @once_per_item
    def order(text: int) -> list[tuple[str, int]]:
        harm = {one: 1 - scorers[text](_set([one])) for one in singles}
        return sorted(singles, key=lambda one: (harm[one], one))

    def least(count: int) -> Arm:
        def measure(text: int) -> Mapping[str, float]:
            return {"matchness": scorers[text](_set(order(text)[:count])), "left out": float(count)}

        return Arm(f"the {count} of least harm alone", measure)

    arms += [least(count) for count in REMOVED if count < len(singles)]

    def searched(name: str, options: dict[str, Any]) -> Arm:
        def measure(text: int) -> Mapping[str, float]:
            found = [
                search(scorers[text], layers, skip_ratio=0.15, max_iterations=settings.iterations, seed=seed, **options)
                for seed in range(settings.seed, settings.seed + settings.searches)
            ]
            return {
                "matchness": float(np.mean([scorers[text](one) for one in found])),
                "left out": float(np.mean([len(one) for one in found])),
            }

        return Arm(name, measure)

    process, alone = "searched, r = 0.15, Gaussian process", "searched, r = 0.15, random alone"
    arms += [
        searched(process, {}),
        searched(alone, {"bayes_interval": 0}),
        searched("searched, r = 0.15, whole layers", {"whole_layers": True}),
    ]
    return Study(
        f"Share of the next {settings.window} tokens that the model without some sublayers says as well; {settings.iterations} "
        f"candidates of a search, {settings.searches} searches.",
        list(range(len(scorers))),
        arms,
        (Figure("left out", "left out", form=".0f"), Figure("matchness", "matchness", form=".3f")),
        (
            PublishedClaim("the search beats every second layer", "matchness", process, "every second layer"),
            PublishedClaim("the Gaussian process helps", "matchness", process, alone),
        ),
        "set",
        lm,
    )


def scoring(settings: Settings) -> Study:
    lm = loaded(settings.model)
    judges = _scorers(settings, Matchness)

    def arm(name: str, kind: type[Matchness]) -> Arm:
        scorers = _scorers(settings, kind)

        def measure(text: int) -> Mapping[str, float]:
            before = scorers[text].forwards
            given = {"skip_ratio": 0.15, "max_iterations": settings.iterations, "seed": settings.seed}
            found = search(scorers[text], lm.network.layers, **given)
            spent = scorers[text].forwards - before
            return {"forwards": float(spent), "matchness": judges[text](found)}

        return Arm(name, measure)

    return Study(
        f"A search of {settings.iterations} candidates, r = 0.15.",
        list(range(len(judges))),
        [arm("matchness", Matchness), arm("accepted length of one draft", AcceptedLength)],
        (Figure("forwards", "forwards", form=".0f"), Figure("matchness", "matchness", form=".3f")),
        (
            PublishedClaim(
                "matchness costs fewer forwards", "forwards", "matchness", "accepted length of one draft", above=False
            ),
        ),
        "scored by",
        lm,
    )


EXPERIMENT = Experiment(
    "self_speculation",
    "Self-speculation: exits, sets of sublayers, and what they gain",
    "DEL, COLM 2025, arXiv 2504.05598; SWIFT, ICLR 2025, arXiv 2410.06916",
    (
        "decodery.speculative.del_.method",
        "decodery.speculative.swift.method",
        "decodery.speculative.del_.exits",
        "decodery.speculative.swift.layer_search",
    ),
    Settings(),
    {"exits": exits, "del": early_exits, "swift": layer_sets, "sets": sets, "scoring": scoring},
)
