"""From stories to rows of tokens: a byte-level tokenizer of their own, and windows with a prompt and an end."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from decodery.training.story_texts import first_sentence, sentence_starts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from decodery.training.masking import Row, Source

MASK, END = "<mask>", "<end>"
PADS = tuple(f"<pad{i}>" for i in range(7))
"""Reserved, in the order in which rainbow padding takes them."""
MASK_ID, END_ID = 0, 1
PAD_IDS = tuple(range(2, 2 + len(PADS)))
TOTALS = (48, 64, 96, 128)
"""Lengths of prompt and canvas together."""
WITH_END = 0.12
"""Share of the rows that are chosen long enough for the story's end. Were it large, the last positions of an empty canvas
would most likely hold ends, and a decoder that takes the most confident positions first would write them before any word."""
LONG_PADDING = 0.3
"""Share of those whose canvas may be much longer than the story; the others end within the next fitting length."""


def train_tokenizer(stories: Iterable[str], vocabulary: int) -> Tokenizer:
    """A byte-level BPE tokenizer with `vocabulary` entries: mask, end and pads first, then all bytes, then merges."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = [AddedToken(word, special=True, normalized=False) for word in (MASK, END, *PADS)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(stories, trainer)
    return tokenizer


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, mask_token=MASK, eos_token=END, clean_up_tokenization_spaces=False
    )
    fast.save_pretrained(str(folder))


@dataclass(frozen=True)
class Story:
    """tokens: ids of the story, without an end. opening: tokens of its first sentence. starts: tokens before each sentence."""

    tokens: tuple[int, ...]
    opening: int
    starts: tuple[int, ...]


def encode_stories(stories: Sequence[str], tokenizer: Tokenizer) -> list[Story]:
    """Stories as tokens."""
    found = []
    for story, coded in zip(stories, tokenizer.encode_batch(list(stories)), strict=True):
        ends = [stop for _, stop in coded.offsets]
        # A token that holds the blank before a sentence begins before that sentence does.
        starts = [sum(stop <= place for stop in ends) for place in sentence_starts(story)]
        opening = sum(stop <= len(first_sentence(story)) for stop in ends)
        found.append(Story(tuple(coded.ids), opening, tuple(starts)))
    return found


def row_of(story: Story, start: int, prompt: int, total: int) -> Row:
    """One row of `total` tokens from token `start` of a story on: cut off, or with an end and end tokens to fill it up."""
    tokens = story.tokens[start : start + total]
    return prompt, [*tokens, *([END_ID] * (total - len(tokens)))]


@dataclass(frozen=True)
class Window:
    """Which part of a story a row shows. start: its first token. prompt: share of the first sentence that is the prompt."""

    story: Story
    start: int
    prompt: float

    def row(self, total: int, whole: bool) -> Row:
        starts, tokens = self.story.starts, self.story.tokens
        sentence = next((place for place in starts if place > self.start), len(tokens)) - self.start
        return row_of(self.story, self.start, 0 if whole else min(round(self.prompt * sentence), total // 2), total)


def draw_window(story: Story, generator: np.random.Generator) -> tuple[Window, int]:
    """A window of a story and the length of its row.

    Three in four windows begin where the story does, the others with a later sentence after which a row can be filled. The
    prompt is the first sentence, its first few words or, for one row in ten, nothing; never more than half of the row.
    """
    later, kind, share, end, long = generator.random(5).tolist()
    start = 0
    starts = [place for place in story.starts if len(story.tokens) - place >= TOTALS[0]]
    if later < 0.25 and starts:
        start = starts[int(generator.integers(len(starts)))]
    left = len(story.tokens) - start
    filled = [total for total in TOTALS if total <= left]
    holding = [total for total in TOTALS if total > left] or [TOTALS[-1]]
    if filled and end >= WITH_END:
        total = filled[int(generator.integers(len(filled)))]
    else:
        total = holding[int(generator.integers(len(holding)))] if long < LONG_PADDING else holding[0]
    return Window(story, start, 0.0 if kind < 0.1 else 1.0 if kind < 0.55 else share), total


def story_rows(stories: Sequence[Story], seed: int, batch_tokens: int, whole: bool = False) -> Source:
    """A source of rows; a pool has one row of every story, and another window of it in every pool.

    whole: make all of each row a canvas (for the twin, which learns from the same rows in the same order). The rows of a
    length fill whole batches of `batch_tokens`, so that batches have few shapes; rows that are left over go to the next
    length, and at the last length are left out.
    """

    def pool(number: int) -> list[Row]:
        generator = np.random.Generator(np.random.Philox(key=[seed, number]))
        groups: dict[int, list[Window]] = {total: [] for total in TOTALS}
        for index in generator.permutation(len(stories)).tolist():
            window, total = draw_window(stories[index], generator)
            groups[total].append(window)
        rows: list[Row] = []
        left: list[Window] = []
        for total in TOTALS:
            group = left + groups[total]
            filled = len(group) - len(group) % max(1, batch_tokens // total)
            rows += [window.row(total, whole) for window in group[:filled]]
            left = group[filled:]
        return rows

    return pool


def validation_rows(stories: Sequence[Story]) -> list[Row]:
    """One row of each story: as long a front of it as fills a row, with its first sentence as the prompt.

    Rows full of words measure the language alone: neither where the end is, nor what it costs to fill a canvas after it.
    """
    rows = []
    for story in stories:
        total = max((total for total in TOTALS if total <= len(story.tokens)), default=TOTALS[0])
        rows.append(row_of(story, 0, min(story.opening, total // 2), total))
    return rows


def counted_tokens(rows: Sequence[Row]) -> int:
    """Tokens of the canvases up to and with the first end, which bits per token are measured by."""
    return sum(
        min(len(ids) - prompt, ids.index(END_ID) + 1 - prompt if END_ID in ids else len(ids)) for prompt, ids in rows
    )
