"""Traps into documents and out again, byte for byte.

Source: Meeus et al., arXiv 2402.09363, section 4: copies before random words, one trap a document.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from decodery.audit.traps import MEMBER, Trap
from decodery.errors import BadInput
from decodery.text_files import read_records, write_records

SPACE = " "


@dataclass(frozen=True)
class Injection:
    """A trap in a document. document: its number, from 0. positions: of each copy, in bytes of the document with all
    copies."""

    document: int
    trap: str
    positions: tuple[int, ...]


def inject(text: str, trap: str, copies: int, chance: np.random.Generator) -> tuple[str, tuple[int, ...]]:
    """A document with so many copies of a trap, each before another random word, with a space behind it; and where they
    begin, in bytes. Raises BadInput where there are fewer words than copies."""
    words = text.split(SPACE)
    if not trap:
        raise BadInput("a trap needs some text.")
    if copies > len(words):
        raise BadInput(f"{copies} copies of a trap need as many words, and the document has {len(words)}.")
    before = set(chance.choice(len(words), copies, replace=False).tolist())
    parts: list[str] = []
    positions, length = [], 0
    for place, word in enumerate(words):
        for part, is_trap in ((trap, True), (word, False)):
            if is_trap and place not in before:
                continue
            if is_trap:
                positions.append(length)
            parts.append(part)
            length += len(part.encode()) + 1  # and the space behind it
    return SPACE.join(parts), tuple(positions)


def remove(text: str, trap: str, positions: Sequence[int]) -> str:
    """The document as it was: each copy is taken out with the space that it brought. Raises BadInput where one is not
    there."""
    written, copy = text.encode(), trap.encode() + SPACE.encode()
    for position in sorted(positions, reverse=True):
        if written[position : position + len(copy)] != copy:
            raise BadInput(f"there is no copy of the trap at byte {position}; the document was changed since.")
        written = written[:position] + written[position + len(copy) :]
    return written.decode()


def inject_all(
    texts: Sequence[str], traps: Sequence[Trap], least_words: int = 1, seed: int = 0
) -> tuple[list[str], list[Injection]]:
    """Each member into a document of its own, chosen at random among those of enough words; the other documents stay.

    Raises BadInput where there are more members than such documents.
    """
    chance = np.random.Generator(np.random.Philox(key=seed))
    members = [trap for trap in traps if trap.split == MEMBER]
    long = [place for place, text in enumerate(texts) if len(text.split(SPACE)) >= least_words]
    if len(long) < len(members):
        raise BadInput(f"{len(members)} traps need a document each, and {len(long)} have {least_words} words and more.")
    found, injected = list(texts), []
    for place, trap in zip(chance.permutation(long)[: len(members)].tolist(), members, strict=True):
        found[place], positions = inject(texts[place], trap.text, trap.repetitions, chance)
        injected.append(Injection(place, trap.text, positions))
    return found, injected


def remove_all(texts: Sequence[str], injections: Sequence[Injection]) -> list[str]:
    """The documents as they were. Raises BadInput."""
    found = list(texts)
    for one in injections:
        if not 0 <= one.document < len(texts):
            raise BadInput(f"there is no document {one.document}; there are {len(texts)}.")
        found[one.document] = remove(found[one.document], one.trap, one.positions)
    return found


def contexts(texts: Sequence[str], injections: Sequence[Injection]) -> dict[str, str]:
    """What stands before one copy of each trap, without the copies before it: trap -> text. texts: with the copies. Of the
    copies the middle one is taken."""
    found = {}
    for one in injections:
        middle = sorted(one.positions)[len(one.positions) // 2]
        before = texts[one.document].encode()[:middle].decode()
        earlier = [position for position in one.positions if position < middle]
        found[one.trap] = remove(before, one.trap, earlier)
    return found


def write_injections(path: Path, injections: Sequence[Injection]) -> None:
    """One JSON object a line."""
    write_records(path, map(asdict, injections))


def read_injections(path: Path) -> list[Injection]:
    """Raises BadInput, which names the line."""

    def made(entry: dict[str, Any]) -> Injection:
        return Injection(int(entry["document"]), str(entry["trap"]), tuple(map(int, entry["positions"])))

    return read_records(path, made, "record that decodery traps inject wrote")
