"""The vocabulary of the tasks, one token a word, and the tokenizer that reads it."""

from __future__ import annotations

from pathlib import Path

from decodery.evaluation.parallelbench import arithmetic, sentences
from decodery.evaluation.parallelbench.tasks import LETTERS

MASK, END = "<mask>", "<end>"
PADS = tuple(f"<pad{i}>" for i in range(7))
"""Reserved for rainbow padding, in their order."""
_TASK_WORDS = (
    "copy", "reverse", "sort", "shuffle", "insert", "remove", "replace", "at", "by", "item", "any", "anywhere", "latin",
    "square", "sudoku", "sentence", "with", "paraphrase", "continue", ":", "=", "\n", "+", "-", "*",
)  # fmt: skip


def vocabulary() -> dict[str, int]:
    """Word -> id: mask and end first, then the pads, then all words of the tasks."""
    words = (
        MASK,
        END,
        *PADS,
        *_TASK_WORDS,
        *(str(number) for number in range(arithmetic.LARGEST + 1)),
        *LETTERS,
        *sentences.FUNCTION,
        *sentences.ANIMATE,
        *sentences.VERBS,
        *sentences.VERBS.values(),
        *sentences.ADJECTIVES,
        *sentences.PLACES,
        *arithmetic.NAMES,
        *arithmetic.THINGS,
        *arithmetic.MORE,
        *arithmetic.FEWER,
        *arithmetic.OTHER_WORDS,
    )
    return {word: place for place, word in enumerate(dict.fromkeys(words))}


def encode(text: str, words: dict[str, int]) -> list[int]:
    """Ids of a text, as the tokenizer gives them. Raises KeyError for a word outside the vocabulary."""
    return [words[word] for word in text.replace("\n", " \n ").split(" ") if word]


def decode(ids: list[int], names: list[str]) -> str:
    """The text of ids, as the tokenizer gives it. names: the words by id."""
    return " ".join(names[i] for i in ids).replace(" \n ", "\n")


def write_tokenizer(folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json: words between blanks, and line breaks."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(vocabulary(), unk_token=None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(Regex(" +"), "removed")]
    )
    # The first decoder puts blanks between words, the last takes them away around line breaks.
    tokenizer.decoder = decoders.Sequence(
        [decoders.WordPiece(prefix="##", cleanup=False), decoders.Fuse(), decoders.Replace(" \n ", "\n")]
    )
    tokenizer.add_special_tokens([AddedToken(word, special=True, normalized=False) for word in (MASK, END, *PADS)])
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, mask_token=MASK, eos_token=END, clean_up_tokenization_spaces=False
    )
    fast.save_pretrained(str(folder))
