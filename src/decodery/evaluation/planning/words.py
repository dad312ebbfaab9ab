"""The vocabulary of planning tasks, one token a word, and the tokenizer that reads it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

CLASS, BEGIN, MASK, END, PAD, HOLE = "<class>", "<begin>", "<mask>", "<end>", "<pad>", "<hole>"
SPECIAL = (CLASS, BEGIN, MASK, END, PAD, HOLE)
"""What no text holds, in the order of their ids: the slot that tells whether the text is complete, the slot before the answer,
the mask and the end of other kinds of models, filling, and an open gap in a prompt."""


@dataclass(frozen=True)
class Puzzle:
    """A task: words of the prompt and of the one right answer."""

    prompt: tuple[str, ...]
    answer: tuple[str, ...]


def vocabulary(words: Sequence[str]) -> dict[str, int]:
    """Word -> id: the special ones first."""
    return {word: place for place, word in enumerate((*SPECIAL, *words))}


def write_tokenizer(folder: Path, words: Sequence[str]) -> None:
    """Write tokenizer.json and tokenizer_config.json: words between blanks, and the special ones."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(vocabulary(words), unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(" +"), "removed")
    tokenizer.decoder = decoders.WordPiece(prefix="##", cleanup=False)
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in SPECIAL])
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, mask_token=MASK, eos_token=END, pad_token=PAD, clean_up_tokenization_spaces=False
    )
    fast.save_pretrained(str(folder))
