"""A corpus of very short stories, written by a model: raw texts in parts, then a filter."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decodery.training.story_prompts import story_beginnings

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel

BATCH = 96
NEW_TOKENS = 120
TEMPERATURE = 0.75
"""Higher temperatures lose the thread, lower ones run into loops."""

Progress = Callable[[str, int, int], None]
"""(stage, done, of how many)."""


def silent(stage: str, done: int, total: int) -> None:
    """A progress that says nothing."""


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
