"""A corpus of very short stories, written by a model: raw texts in parts, then a filter."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decodery.training.options import silent
from decodery.training.story_prompts import story_beginnings

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel

BATCH = 96
NEW_TOKENS = 120
TEMPERATURE = 0.75
"""Higher temperatures lose the thread, lower ones run into loops."""

Progress = Callable[[str, int, int], None]
"""(stage, done, of how many)."""


def write_stories(lm: LanguageModel, count: int, seed: int, folder: Path, progress: Progress = silent) -> list[Path]:
    """Let the model go on with `count` beginnings; each batch becomes a file of JSON lines with the whole raw text.

    A file that is there is not made again, so an interrupted run goes on. A line: `beginning`, `text` (what the model
    wrote after it), `ended` (whether the model ended it itself). The model must know conversations.
    """
    folder.mkdir(parents=True, exist_ok=True)
    pairs = story_beginnings(count, seed)
    files = []
    for start in range(0, count, BATCH):
        path = folder / f"{start // BATCH:05d}.jsonl"
        files.append(path)
        if path.exists():
            continue
        progress("writing stories", start, count)
        group = pairs[start : start + BATCH]
        prompts = [[*lm.tokenize([{"role": "user", "content": ask}]), *lm.encode(begin)] for ask, begin in group]
        replies = lm.generate(
            prompts,
            "autoregressive",
            temperature=TEMPERATURE,
            seed=[seed * 1_000_003 + start + place for place in range(len(group))],
            max_new_tokens=NEW_TOKENS,
        )
        lines = [
            json.dumps({"beginning": begin, "text": reply.text, "ended": reply.finish_reason == "stop"})
            for (_, begin), reply in zip(group, replies, strict=True)
        ]
        scratch = path.with_suffix(".tmp")
        scratch.write_text("\n".join(lines) + "\n", "utf-8")
        os.replace(scratch, path)
    progress("writing stories", count, count)
    return files


SHORTEST_WORDS, LONGEST_WORDS, FEWEST_SENTENCES = 36, 130, 3
_SENTENCE = re.compile(r"[^.!?]+[.!?]+[\"')]*(?=\s|$)")
_ALLOWED = re.compile(r"[A-Za-z ,.!?'\"-]+")
_META = re.compile(
    r"\b(stor(y|ies)|tales?|chapter|author|narrat\w*|readers?|moral|paragraph|title|characters?|simple words|sentences?|"
    r"the end|illustrat\w*|children's book|version|assistant|AI)\b",
    re.IGNORECASE,
)
_UNSUITABLE = re.compile(
    r"\b(kill\w*|murder\w*|blood\w*|dead|die[sd]?|death|guns?|knife|knives|wine|beer|drunk\w*|drugs?|sex\w*|naked|god|hell|damn|"
    r"devil|stupid|ugly|fat|hate[sd]?|slaves?|war|butt|ass)\b",
    re.IGNORECASE,
)
_QUOTES = str.maketrans({"\u201c": '"', "\u201d": '"', "\u2018": "'", "\u2019": "'", "\u2013": "-", "\u2014": "-"})


def clean_story(beginning: str, text: str) -> str | None:
    """The usable front of a raw text as one line: None where too little of it is usable.

    It ends before the first sentence that is unfinished, has signs other than English letters and plain punctuation, speaks
    about the text itself or of what is not for children, or repeats what was said: a sentence that was there, four words for
    the third time, or a word three times in a row. Quotation marks must be closed.
    """
    whole = " ".join((beginning + text).translate(_QUOTES).split())
    kept: list[str] = []
    said: set[str] = set()
    fours: dict[tuple[str, ...], int] = {}
    words: list[str] = []
    usable = 0
    place = 0
    for found in _SENTENCE.finditer(whole):
        sentence = found.group().strip()
        if whole[place : found.start()].strip() or not _ALLOWED.fullmatch(sentence):
            break
        place = found.end()
        plain = re.sub(r"[^a-z' ]", "", sentence.lower())
        if (
            plain in said
            or _META.search(sentence)
            or _UNSUITABLE.search(sentence)
            or not sentence.strip("\"' ")[:1].isupper()
        ):
            break
        said.add(plain)
        before = len(words)
        words += plain.split()
        if any(len(set(words[i : i + 3])) == 1 for i in range(max(0, before - 2), len(words) - 2)):
            break
        for i in range(max(0, before - 3), len(words) - 3):
            four = tuple(words[i : i + 4])
            fours[four] = fours.get(four, 0) + 1
        if len(words) > LONGEST_WORDS or max(fours.values(), default=0) > 2:
            break
        kept.append(sentence)
        if " ".join(kept).count('"') % 2 == 0:
            usable = len(kept)
    story = " ".join(kept[:usable])
    return story if usable >= FEWEST_SENTENCES and len(story.split()) >= SHORTEST_WORDS else None


def read_stories(files: list[Path]) -> Iterator[str]:
    """The clean stories of files that `write_stories` made, in order, none with an opening that was there before."""
    openings = set()
    for path in files:
        for line in path.read_text("utf-8").splitlines():
            entry: dict[str, Any] = json.loads(line)
            story = clean_story(entry["beginning"], entry["text"])
            if story is None:
                continue
            opening = " ".join(story.lower().split()[:15])
            if opening not in openings:
                openings.add(opening)
                yield story


def first_sentence(story: str) -> str:
    """The first sentence of a clean story."""
    found = _SENTENCE.match(story)
    return found.group() if found else story


def sentence_starts(story: str) -> list[int]:
    """Where the sentences of a clean story begin, in characters."""
    return [found.start() + (found.group()[0] == " ") for found in _SENTENCE.finditer(story)]
