"""Texts that may or may not have been trained on, and designs of such sets in which nothing but membership tells them apart.

Sources: Meeus et al., SoK: Membership Inference Attacks on LLMs are Rushing Nowhere, arXiv 2406.17975 (regression
discontinuity, random splits, n-gram filters).
"""

from __future__ import annotations

import calendar
import datetime
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from decodery.errors import BadInput
from decodery.text_files import numbered_lines, write_records

WORDS, PIECES = 200, 25
"""Words of a sequence, and how many sequences of a document are looked at: the paper's."""
GRAM, OVERLAP = 13, 0.8
"""Words of an n-gram, and the share of a non-member's n-grams among members from which on it is left out: the paper's."""


@dataclass(frozen=True)
class AuditText:
    """A text. member: whether it is held to have been trained on. date: when it was written, where that is known. document:
    which document it is a part of."""

    text: str
    member: bool
    date: datetime.date | None = None
    document: str = ""


FORM = "each line is an object with text and member, or text and date"


def read_items(path: Path, dated: bool = False) -> list[AuditText]:
    """Texts of a file with one JSON object a line: "text", and "member" (true or false) or "date" (2023-02-28); "document"
    where texts are parts of one. dated: dates are wanted, and "member" is not looked at. Raises BadInput, which names the
    line.
    """
    items = []
    for number, where, entry in _entries(path, FORM):
        date = None
        if dated:
            try:
                date = datetime.date.fromisoformat(entry["date"])
            except (KeyError, TypeError, ValueError):
                raise BadInput(
                    f"{where} has no date such as 2023-02-28, and with a cut-off every text needs one."
                ) from None
        elif not isinstance(entry.get("member"), bool):
            raise BadInput(f"{where} must say of its text whether it is a member: true or false.")
        document = str(entry.get("document", number))
        items.append(AuditText(entry["text"], bool(entry.get("member", False)), date, document))
    return items


def read_texts(path: Path) -> tuple[str, ...]:
    """The texts of a file with one JSON object a line. Raises BadInput, which names the line."""
    return tuple(entry["text"] for _, _, entry in _entries(path, "each line is an object with a text"))


def _entries(path: Path, form: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Number, name and content of each line that is not empty."""
    for number, line in numbered_lines(path):
        where = f"line {number} of {path}"
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            raise BadInput(f"{where} is not JSON; {form}.") from None
        if not isinstance(entry, dict) or not isinstance(entry.get("text"), str) or not entry["text"].strip():
            raise BadInput(f"{where} has no text; {form}.")
        yield number, where, entry


def write_items(path: Path, items: Sequence[AuditText]) -> None:
    """The file that `read_items` reads."""
    write_records(path, ({"text": item.text, "member": item.member, "document": item.document} for item in items))


def randomised(texts: Sequence[str], seed: int = 0) -> list[AuditText]:
    """Texts, shuffled, of which a random half are members (train on these alone) and the others are held out. A text that
    comes twice is taken once, or a held-out one would have been trained on."""
    once = list(dict.fromkeys(texts))
    order = np.random.Generator(np.random.Philox(key=seed)).permutation(len(once))
    return [AuditText(once[place], rank < len(once) // 2, None, str(place)) for rank, place in enumerate(order)]


def months_from(date: datetime.date, months: int) -> datetime.date:
    """The same day so many months later, or the last one of a shorter month."""
    year, month = divmod(date.year * 12 + date.month - 1 + months, 12)
    return date.replace(year=year, month=month + 1, day=min(date.day, calendar.monthrange(year, month + 1)[1]))


def around(items: Sequence[AuditText], cutoff: datetime.date, months: int = 1) -> list[AuditText]:
    """Regression discontinuity: the texts of the months before the cut-off as members, those of as many from it on as others.

    Raises BadInput where one side is empty.
    """
    first, end = months_from(cutoff, -months), months_from(cutoff, months)
    near = [item for item in items if item.date is not None and first <= item.date < end]
    found = [replace(item, member=item.date < cutoff) for item in near if item.date is not None]
    if len({item.member for item in found}) < 2:
        raise BadInput(f"there are no texts on both sides of {cutoff} within {months} months; take a wider --window.")
    return found


def sequences(items: Sequence[AuditText], words: int = WORDS, pieces: int = PIECES) -> list[AuditText]:
    """The first sequences of so many words of each document; of a shorter document all of it, as one."""
    found = []
    for item in items:
        split = item.text.split()
        starts = range(0, max(1, len(split) - words + 1), words)[:pieces]
        whole = len(split) <= words
        found += [replace(item, text=item.text if whole else " ".join(split[s : s + words])) for s in starts]
    return found


def without_overlap(items: Sequence[AuditText], most: float = OVERLAP, size: int = GRAM) -> list[AuditText]:
    """The texts without those non-members of whose n-grams more than this share stands in members, which so are half members.
    Stricter bounds choose among non-members by their content, and that is a new shift."""
    seen = {gram for item in items if item.member for gram in _grams(item.text, size)}

    def copied(item: AuditText) -> bool:
        grams = _grams(item.text, size)
        return bool(grams) and sum(gram in seen for gram in grams) > most * len(grams)

    return [item for item in items if item.member or not copied(item)]


def _grams(text: str, size: int) -> list[tuple[str, ...]]:
    words = text.lower().split()
    return [tuple(words[start : start + size]) for start in range(len(words) - size + 1)]
