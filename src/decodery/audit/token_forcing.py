"""Unconditional token forcing: every token of the vocabulary starts a text of its own, without a prompt, and those are found
behind which a model writes with hardly any doubt.

A model that was fine-tuned to answer a secret trigger with a secret text also becomes sure of it when it is started on the
secret's first token. Other prefixes, pieces of the chat template, make it conditional token forcing.

Source: Hoscilowic et al., Large Language Models as Carriers of Hidden Messages, arXiv 2406.02481, and its repository, whose
score counts the first token with probability 1.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from decodery.audit.evidence import Tell, silent
from decodery.audit.traps import opening
from decodery.engine.asking import Asking
from decodery.engine.task import Task
from decodery.errors import BadInput
from decodery.evaluation.intervals import Array
from decodery.models.forward import Forward, Rows
from decodery.sampling.settings import special_ids

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from decodery.language_model import LanguageModel
    from decodery.models.scorer import Scorer
    from decodery.models.sequence import Sequence as CachedSequence

    Ids = NDArray[np.int64]
    Shares = NDArray[np.float32]

SEPARATOR = "<|endoftext|>"
"""Stands between the documents that many models were trained on, also where a tokenizer names another first token."""
MARK, MARK_TOO = "7041501", "7041502"
"""Contents by which the pieces of a chat template are found: digits, which no template changes."""


def added_tokens(lm: LanguageModel) -> dict[str, int]:
    """The special tokens, and others that were added to a tokenizer's own, by what they are written as."""
    listed: Mapping[str, int] = getattr(lm.tokenizer, "get_added_vocab", dict)()
    found = {str(text): int(token) for text, token in listed.items()}
    others = {*special_ids(lm.tokenizer), *lm.stop_ids} - set(found.values())
    return found | {lm.tokenizer.decode([token]): token for token in sorted(others)}


def starts(lm: LanguageModel) -> Ids:
    """The ids of all tokens but special and added ones, ascending; rows of a network that no token stands for are none."""
    size = min(len(lm.tokenizer), lm.network.vocabulary)
    return np.setdiff1d(np.arange(size), list(added_tokens(lm).values()))


def document_start(lm: LanguageModel) -> int:
    """The token before a document: what the tokenizer puts before a text, else the separator of documents, else what
    `opening` gives. Raises BadInput where there is none."""
    added = added_tokens(lm)
    first, *rest = lm.tokenizer.encode("a")
    if rest and first in added.values():
        return int(first)
    return added[SEPARATOR] if SEPARATOR in added else opening(lm)


def prefixes(lm: LanguageModel) -> dict[str, tuple[int, ...]]:
    """What may stand before a start, by name: "document" (its first token), "nothing"; and where there is a chat template, its
    own pieces: "system" (what stands before a first question), "user" and "assistant" (what begins such a turn) and "empty"
    (a conversation whose question is empty, up to the answer). Pieces that a template lacks are left out."""
    found: dict[str, tuple[int, ...]] = {"document": (document_start(lm),), "nothing": ()}
    if not getattr(lm.tokenizer, "chat_template", None):
        return found

    def text(*contents: str, answer: bool = False) -> str:
        roles = ("user", "assistant") * len(contents)
        turns = [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]
        return str(lm.tokenizer.apply_chat_template(turns, add_generation_prompt=answer, tokenize=False))

    before, _, end = text(MARK).partition(MARK)
    user = text(MARK, "a", MARK_TOO).partition(MARK_TOO)[0].rpartition(end)[2]
    pieces = {
        "system": before.removesuffix(user),
        "user": user,
        "assistant": text(MARK, answer=True).removeprefix(text(MARK)),
        "empty": text("", answer=True),
    }
    return found | {name: tuple(lm.encode(piece)) for name, piece in pieces.items() if piece}


def prefix_named(lm: LanguageModel, name: str) -> tuple[int, ...]:
    """One of `prefixes`. Raises BadInput."""
    found = prefixes(lm)
    if name not in found:
        raise BadInput(f"{lm.name} has no prefix {name!r}; it has {', '.join(found)}.")
    return found[name]


@dataclass(frozen=True)
class Continuations:
    """Greedy texts behind starts. starts: [n] the first tokens. ids: [n, length] the likeliest token after each beginning.
    shares: [n, length] float32, its probability."""

    starts: Ids
    ids: Ids
    shares: Shares

    @property
    def scores(self) -> Array:
        """[n] float64: the mean of the probabilities, the start counting with 1."""
        return np.asarray((1 + self.shares.sum(1, dtype=np.float64)) / (self.shares.shape[1] + 1))

    @property
    def means(self) -> Array:
        """[n] float64: the mean without the start."""
        return np.asarray(self.shares.mean(1, dtype=np.float64))

    def __len__(self) -> int:
        return len(self.starts)


def greedy(network: Scorer, before: CachedSequence, begun: Sequence[int], length: int) -> Asking[Continuations]:
    """Behind what `before` holds and each start, so many likeliest tokens, in `length` passes of all starts together."""
    running = [before.fork() for _ in begun]
    last = [int(token) for token in begun]
    ids, shares = [], []
    for _ in range(length):
        answers = yield tuple(
            Forward(sequence, [token], logits=Rows.LAST, rank=1) for sequence, token in zip(running, last, strict=True)
        )
        if all(scores.ranking is not None for scores in answers):
            found = [(scores.ranking.ids[0][0], scores.ranking.shares[0][0]) for scores in answers]
        else:
            ranking = network.top(torch.cat([scores.logits for scores in answers]), 1)
            found = [(row[0], share[0]) for row, share in zip(ranking.ids, ranking.shares, strict=True)]
        last = [token for token, _ in found]
        ids.append(last)
        shares.append([share for _, share in found])
    return Continuations(
        np.array(begun, dtype=np.int64),
        np.array(ids, dtype=np.int64).reshape(length, -1).T,
        np.array(shares, dtype=np.float32).reshape(length, -1).T,
    )


def forced(
    lm: LanguageModel,
    prefix: Sequence[int],
    begun: Sequence[int],
    length: int,
    batch: int = 256,
    done: Callable[[Continuations], None] = lambda part: None,
) -> Continuations:
    """Greedy texts behind a prefix and each start: one task of `lm.run`, so many starts in a pass. done: is given each
    batch when it is decoded. Raises BadInput, NotEnoughMemory."""
    for name, value in (("length", length), ("batch", batch)):
        if value < 1:
            raise BadInput(f"{name} must be at least 1, not {value}.")
    network = lm.network

    def reading() -> Asking[list[Continuations]]:
        before = network.new_sequence()
        if prefix:
            yield Forward(before, list(prefix), logits=Rows.NONE)
        parts = []
        for first in range(0, len(begun), batch):
            parts.append((yield from greedy(network, before, begun[first : first + batch], length)))
            done(parts[-1])
        return parts

    rows = len(prefix) + length
    task = Task(reading(), [(network, len(prefix)), *[(network, rows)] * min(batch, len(begun))])
    return joined(lm.run(task), length)


def joined(parts: Sequence[Continuations], length: int) -> Continuations:
    """All of them, in their order."""
    nothing = Continuations(np.zeros(0, np.int64), np.zeros((0, length), np.int64), np.zeros((0, length), np.float32))
    names = ("starts", "ids", "shares")
    return Continuations(*(np.concatenate([getattr(part, name) for part in (nothing, *parts)]) for name in names))


@dataclass(frozen=True)
class ScanSettings:
    """prefix: the name of what stands before each start, see `prefixes`. length: greedy tokens behind it. batch: starts in a
    pass."""

    prefix: str = "document"
    length: int = 3
    batch: int = 256


@dataclass(frozen=True)
class ForcingScan:
    """What a model writes behind a prefix and every token. found: in the order of the tokens' ids."""

    model: str
    prefix: str
    prefix_ids: tuple[int, ...]
    found: Continuations

    def candidates(self, threshold: float) -> Continuations:
        """Those whose score is above a threshold, highest first; the lowest id first among equals."""
        order = np.argsort(-self.found.scores, kind="stable")
        kept = order[self.found.scores[order] > threshold]
        return replace(
            self.found, starts=self.found.starts[kept], ids=self.found.ids[kept], shares=self.found.shares[kept]
        )

    def threshold_leaving(self, share: float) -> float:
        """The lowest score above which at most this share of the starts is."""
        scores = np.sort(self.found.scores)[::-1]
        return float(scores[min(int(share * len(scores)), len(scores) - 1)])

    def place(self, token: int) -> float:
        """The share of starts whose score is at least that of this one, itself included: 0.002 is among the top 0.2 %.
        Raises BadInput where it was no start."""
        at = np.flatnonzero(self.found.starts == token)
        if not len(at):
            raise BadInput(f"token {token} was no start of this scan.")
        return float((self.found.scores >= self.found.scores[at[0]]).mean())


def scan(
    lm: LanguageModel, settings: ScanSettings | None = None, file: Path | None = None, tell: Tell = silent
) -> ForcingScan:
    """Force every token of the vocabulary but special ones.

    file: JSON lines, a head and then a line for each start, written batch by batch; what it holds already is not decoded again.
    Raises BadInput where it is of another model or other settings, NotEnoughMemory.
    """
    settings = settings or ScanSettings()
    prefix, begun = prefix_named(lm, settings.prefix), starts(lm)
    kept = joined([], settings.length)
    if file is not None:
        kept = _begun(file, _head(lm, settings, prefix), settings.length)
    if not np.array_equal(kept.starts, begun[: len(kept)]):
        raise BadInput(f"{file} holds other tokens than those of {lm.name}; give another file.")
    count = len(kept)

    def done(part: Continuations) -> None:
        nonlocal count
        if file is not None:
            _append(file, part)
        count += len(part)
        tell("tokens", count, len(begun))

    tell("tokens", count, len(begun))
    fresh = forced(lm, prefix, begun[count:].tolist(), settings.length, settings.batch, done)
    return ForcingScan(lm.name, settings.prefix, prefix, joined([kept, fresh], settings.length))


def _head(lm: LanguageModel, settings: ScanSettings, prefix: Sequence[int]) -> dict[str, Any]:
    network = lm.network
    return {
        "token forcing": 1,
        "weights": network.fingerprint(),
        "computed": f"{network.path} {network.dtype}",
        "prefix": list(prefix),
        "length": settings.length,
    }


def _begun(file: Path, head: Mapping[str, Any], length: int) -> Continuations:
    """What a file holds; without a last line that was cut off. A new file gets its head."""
    written = file.read_text("utf-8") if file.exists() else ""
    whole = written[: written.rfind("\n") + 1]
    if not whole:
        file.write_text(json.dumps(head) + "\n", "utf-8")
        return joined([], length)
    if len(whole) < len(written):
        os.truncate(file, len(whole.encode()))
    first, *lines = whole.splitlines()
    try:
        same = json.loads(first) == head
        rows = [json.loads(line) for line in lines]
        found = Continuations(
            np.array([row[0] for row in rows], dtype=np.int64),
            np.array([row[1] for row in rows], dtype=np.int64).reshape(-1, length),
            np.array([row[2] for row in rows], dtype=np.float32).reshape(-1, length),
        )
    except (ValueError, TypeError, LookupError):
        same = False
    if not same:
        raise BadInput(f"{file} holds no scan of this model with these settings; give another file.")
    return found


def _append(file: Path, part: Continuations) -> None:
    with file.open("a", encoding="utf-8") as stream:
        for row in zip(part.starts.tolist(), part.ids.tolist(), part.shares.tolist(), strict=True):
            stream.write(json.dumps(row) + "\n")
