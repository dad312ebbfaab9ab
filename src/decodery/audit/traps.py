"""Copyright traps: texts that exist nowhere else, of a chosen length and perplexity, half of which are put into documents.

Who finds the published half likelier than the other, under a model that was trained on the documents, has a test of
membership whose chance of error is known, for which half a trap is in was decided at random.

Source: Meeus, Shilov, Faysse and de Montjoye, Copyright Traps for Large Language Models, ICML 2024, arXiv 2402.09363, and its
repository; where that leaves out the space behind a trap, one is put there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from decodery.audit.evidence import Tell, silent
from decodery.errors import BadInput
from decodery.text_files import read_records, write_records

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel

FIRST, LAST = 1, 100
"""Bounds of the perplexities of the paper's traps, in whole numbers."""
BATCH = 128
"""Texts that are sampled together."""
MEMBER, TWIN = "member", "twin"


@dataclass(frozen=True)
class TrapRecipe:
    """length: tokens of a trap. count: traps in all, members and twins. buckets: of perplexity, each with as many. lowest,
    highest: whole perplexities, both included. coldest, step: temperatures are tried from `coldest` by `step` to below
    `hottest`. alike: most Jaccard similarity of two traps' sets of tokens. round_trip: the text must be read as the very
    tokens. rounds: how often all temperatures are tried before it is given up. repetitions: of the members, in turn."""

    length: int = 25
    count: int = 80
    buckets: int = 5
    lowest: int = 5
    highest: int = 99
    coldest: float = 0.5
    hottest: float = 4.0
    step: float = 0.5
    alike: float = 0.2
    round_trip: bool = True
    batch: int = BATCH
    rounds: int = 20
    repetitions: tuple[int, ...] = (1, 4, 16, 64)
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("length", "count", "buckets", "lowest", "batch", "rounds"):
            if getattr(self, name) < 1:
                raise BadInput(f"{name} must be at least 1, not {getattr(self, name)}.")
        if self.highest - self.lowest + 1 < self.buckets:
            raise BadInput(f"perplexities from {self.lowest} to {self.highest} do not make {self.buckets} buckets.")
        if self.count % (2 * self.buckets):
            raise BadInput(
                f"{self.count} traps do not make equal halves of {self.buckets} buckets; take a multiple of {2 * self.buckets}."
            )
        if not 0 < self.coldest < self.hottest or self.step <= 0:
            raise BadInput("temperatures go from one above 0 to a higher one, by steps above 0.")
        if not self.repetitions or min(self.repetitions) < 1:
            raise BadInput("a member is repeated at least once.")


@dataclass(frozen=True)
class Trap:
    """ids: its tokens. text: what they say. perplexity: under the generator, of all its tokens behind the first one of a
    text. bucket: its number. split: `MEMBER` or `TWIN`. repetitions: how often a member is put into its document; 0 of a
    twin."""

    ids: tuple[int, ...]
    text: str
    perplexity: float
    bucket: int
    split: str = MEMBER
    repetitions: int = 0


def opening(lm: LanguageModel) -> int:
    """The token that texts begin with, or else the one that ends them. Raises BadInput where there is neither."""
    first = getattr(lm.tokenizer, "bos_token_id", None)
    if first is None:
        first = lm.stop_ids[0] if lm.stop_ids else None
    if first is None:
        raise BadInput(f"{lm.name} has no token that texts begin with, from which traps could be sampled.")
    return int(first)


def perplexities(lm: LanguageModel, texts: Sequence[Sequence[int]]) -> list[float]:
    """exp of the mean loss of all tokens behind the opening one, at temperature 1."""
    scored = lm.score([list(text) for text in texts], prompt=[opening(lm)])
    return [math.exp(-float(one.logprobs.double().mean())) for one in scored]


def make_traps(lm: LanguageModel, recipe: TrapRecipe | None = None, tell: Tell = silent) -> list[Trap]:
    """Sample traps until every bucket is full, split each bucket at random into members and twins, and give members their
    repetitions, so that each bucket has as many of each number as its members allow.

    Where the bounds are the paper's 1 to 100 and the count is a multiple of 100, every whole perplexity gets as many. Raises
    BadInput where `rounds` tries do not fill the buckets.
    """
    recipe = recipe or TrapRecipe()
    width = (recipe.highest - recipe.lowest + 1) / recipe.buckets
    units = recipe.highest - recipe.lowest + 1
    by_unit = (recipe.lowest, recipe.highest) == (FIRST, LAST) and recipe.count % LAST == 0
    quota = recipe.count // (units if by_unit else recipe.buckets)
    kept: list[Trap] = []
    sets: list[set[int]] = []
    counts: dict[int, int] = {}
    temperatures = np.arange(recipe.coldest, recipe.hottest, recipe.step)
    for number in range(recipe.rounds * len(temperatures)):
        tell("traps", len(kept), recipe.count)
        if len(kept) == recipe.count:
            return _assigned(kept, recipe)
        seeds = [recipe.seed * 1_000_003 + number * recipe.batch + place for place in range(recipe.batch)]
        replies = lm.generate(
            [[opening(lm)]] * recipe.batch,
            temperature=float(temperatures[number % len(temperatures)]),
            max_new_tokens=recipe.length,
            ignore_eos=True,
            seed=seeds,
        )
        candidates = [tuple(reply.token_ids) for reply in replies if len(reply.token_ids) == recipe.length]
        for ids, perplexity in zip(candidates, perplexities(lm, candidates), strict=True):
            whole = int(perplexity) if math.isfinite(perplexity) else recipe.highest + 1
            if not recipe.lowest <= whole <= recipe.highest:
                continue
            bucket = int((whole - recipe.lowest) / width)
            slot = whole if by_unit else bucket
            text = lm.tokenizer.decode(list(ids))
            if counts.get(slot, 0) >= quota or any(jaccard(set(ids), other) > recipe.alike for other in sets):
                continue
            if recipe.round_trip and (tuple(lm.encode(text)) != ids or text != text.strip() or "\n" in text):
                continue
            kept.append(Trap(ids, text, perplexity, bucket))
            sets.append(set(ids))
            counts[slot] = counts.get(slot, 0) + 1
    if len(kept) == recipe.count:
        return _assigned(kept, recipe)
    raise BadInput(
        f"{len(kept)} of {recipe.count} traps were found in {recipe.rounds} rounds; take fewer, or other perplexities."
    )


def _assigned(traps: Sequence[Trap], recipe: TrapRecipe) -> list[Trap]:
    chance = np.random.Generator(np.random.Philox(key=recipe.seed))
    found, turn = [], 0
    for bucket in range(recipe.buckets):
        mine = [trap for trap in traps if trap.bucket == bucket]
        for rank, place in enumerate(chance.permutation(len(mine))):
            if rank % 2:
                found.append(replace(mine[place], split=TWIN))
                continue
            found.append(replace(mine[place], repetitions=recipe.repetitions[turn % len(recipe.repetitions)]))
            turn += 1
    return found


def jaccard(one: set[int], other: set[int]) -> float:
    """Tokens in common over tokens in either."""
    return len(one & other) / len(one | other)


def write_traps(path: Path, traps: Sequence[Trap]) -> None:
    """One JSON object a line."""
    write_records(path, map(asdict, traps))


def read_traps(path: Path) -> list[Trap]:
    """Raises BadInput, which names the line."""
    return read_records(
        path,
        lambda entry: Trap(**{**entry, "ids": tuple(map(int, entry["ids"]))}),
        "trap that decodery traps make wrote",
    )
