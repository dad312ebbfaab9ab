"""Kangaroo: what its adapter has learnt, and what drafting with it costs and brings.

`agreement`: on the model's greedy answers, how often the likeliest token of the adapter is the model's own, beside the model's
own norm and head on the rows of the first layers, an adapter whose attention adds nothing, and what followed the last two
tokens, or the last one, where they stood before in the text. `answers`: tokens by round and by drafted token of the methods.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study, once_per_item
from decodery.models.forward import POST_NORM, Forward, Rows
from decodery.speculative.kangaroo.adapter import Adapter, shipped
from experiments.self_speculation import methods
from experiments.texts import Asked, loaded, recorded

PUBLISHED = "kangaroo(rest=false, vocabulary=all)"
FIXED, EXITING = "kangaroo(rest=false, threshold=0, length=3)", "kangaroo(rest=false, length=3)"


@dataclass(frozen=True)
class Settings(Asked):
    per_category: int = 2
    tokens: int = 64


def agreement(settings: Settings) -> Study:
    lm = loaded(settings.model)
    network = lm.network
    folder = shipped(network.fingerprint())
    if folder is None:
        raise ValueError(f"no adapter of kangaroo is shipped for {lm.name}; train one: decodery train kangaroo")
    adapter = Adapter.read(folder)
    still = dataclasses.replace(
        adapter, weights={**adapter.weights, "output": torch.zeros_like(adapter.weights["output"])}
    )
    tap, whole, bare = adapter.exit - 1, network.head(), network.head(None, normed=False)
    frequent = network.head(adapter.tokens, normed=False)
    own, without = adapter.network(network), still.network(network)
    texts = recorded(settings)

    @once_per_item
    def read(number: int) -> tuple[torch.Tensor, torch.Tensor, range]:
        text = texts[number]
        wanted = range(text.start - 1, len(text.tokens) - 1)
        ask = Forward(network.new_sequence(), text.tokens[:-1], taps=(tap,), logits=wanted)
        [scores] = network.run([ask])
        return scores.logits.argmax(dim=-1), scores.hidden[tap], wanted

    def spoken(speaker: Any, lower: torch.Tensor, wanted: range) -> torch.Tensor:
        [scores] = speaker.run([Forward(speaker.new_sequence(), lower, taps=(POST_NORM,), logits=Rows.NONE)])
        rows: torch.Tensor = scores.hidden[POST_NORM][wanted.start :]
        return rows

    def arm(name: str, say: Any) -> Arm:
        def measure(number: int) -> Mapping[str, float]:
            true, lower, wanted = read(number)
            return {"right": float((say(number, lower, wanted) == true).sum()), "positions": float(len(true))}

        return Arm(name, measure)

    def bigrams(number: int, lower: torch.Tensor, wanted: range) -> torch.Tensor:
        """The token that followed the last two in this text most recently, else the last one; -1 where nothing did."""
        tokens, found = texts[number].tokens, []
        seen: dict[tuple[int, ...], int] = {}
        for place in range(len(tokens) - 1):
            pair, one = tuple(tokens[max(0, place - 1) : place + 1]), (tokens[place],)
            if place in wanted:
                found.append(seen.get(pair, seen.get(one, -1)))
            seen[pair] = seen[one] = tokens[place + 1]
        return torch.tensor(found)

    arms = [
        arm("adapter", lambda n, lower, wanted: bare(spoken(own, lower, wanted)).argmax(dim=-1)),
        arm(
            "adapter, frequent tokens",
            lambda n, lower, wanted: adapter.tokens[frequent(spoken(own, lower, wanted)).argmax(dim=-1)],
        ),
        arm("adapter without attention", lambda n, lower, wanted: bare(spoken(without, lower, wanted)).argmax(dim=-1)),
        arm(
            "first layers, model's norm and head", lambda n, lower, wanted: whole(lower[wanted.start :]).argmax(dim=-1)
        ),
        arm("what followed last in the text", bigrams),
    ]
    return Study(
        f"Greedy answers of {settings.tokens} tokens; the adapter reads rows of {adapter.exit} of {network.layers} layers.",
        list(range(len(texts))),
        arms,
        (Figure("agreement", "right", per="positions", form=".3f"),),
        (
            PublishedClaim("the adapter makes early layers speak", "agreement", "adapter", arms[3].name),
            PublishedClaim("its attention helps", "agreement", "adapter", arms[2].name),
            PublishedClaim("it knows more than the text's own n-grams", "agreement", "adapter", arms[4].name),
        ),
        "speaker",
        lm,
    )


def answers(settings: Settings) -> Study:
    claims = [
        PublishedClaim("drafting makes decoding faster", "speed", PUBLISHED, 1.0),
        PublishedClaim("the second exit drafts fewer tokens in vain", "accepted", EXITING, FIXED),
    ]
    return methods(settings, ["kangaroo", PUBLISHED, EXITING, FIXED], claims)


EXPERIMENT = Experiment(
    "kangaroo",
    "Kangaroo: what the adapter says, and what it brings",
    "Kangaroo, NeurIPS 2024, arXiv 2404.18911",
    (
        "decodery.speculative.kangaroo.method",
        "decodery.speculative.kangaroo.drafter",
        "decodery.speculative.early_exit",
    ),
    Settings(),
    {"agreement": agreement, "answers": answers},
)
