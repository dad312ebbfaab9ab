"""Counts a table of trigrams for adaptive draft verification, over texts or over what a model itself writes.

    decodery train trigram-table --output table.npz book.txt articles.txt
    decodery train trigram-table --output table.npz --prompts prompts.txt --at-least 1

Then: decodery run --method "adaptive-draft-verification(corpus=table.npz)". The file is arrays of numbers and a fingerprint
of the model's tokenizer; a table of 5 million tokens takes some 40 MB and loads at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from decodery.errors import BadInput
from decodery.language_model import LanguageModel
from decodery.loading import load
from decodery.speculative.continuations.trigrams import TrigramTable, fingerprint
from decodery.training.options import recipe_parser, refusing

BATCH = 8
"""Answers that are written together."""
PIECE = 1 << 14
"""Characters that are tokenised at a time, at most (cut at the end of a line): tokenizers slow down on long texts."""


def text_tokens(lm: LanguageModel, path: Path) -> Iterator[list[int]]:
    """Token ids of a UTF-8 text, piece by piece. Raises BadInput where it cannot be read."""
    try:
        text = path.expanduser().read_text("utf-8-sig")
    except OSError as error:
        raise BadInput(f"the text {path} cannot be read: {error.strerror or error}.") from None
    except UnicodeDecodeError as error:
        raise BadInput(f"the text {path} is not UTF-8 (byte {error.start}).") from None
    start = 0
    while start < len(text):
        end = text.rfind("\n", start, start + PIECE) + 1 if start + PIECE < len(text) else len(text)
        end = end if end > start else start + PIECE
        yield lm.encode(text[start:end])
        start = end


def own_tokens(
    lm: LanguageModel,
    prompts: Sequence[str],
    max_new_tokens: int,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Iterator[list[int]]:
    """Token ids of prompts and the model's greedy answers to them; as conversations where it has a chat template.

    on_progress: called with how many answers are written, and how many there will be.
    """
    chats = bool(getattr(lm.tokenizer, "chat_template", None))
    for start in range(0, len(prompts), BATCH):
        part = prompts[start : start + BATCH]
        asked = [lm.tokenize([{"role": "user", "content": text}] if chats else text) for text in part]
        replies = lm.generate(asked, method="autoregressive", max_new_tokens=max_new_tokens)
        for ids, reply in zip(asked, replies, strict=True):
            yield [*ids, *reply.token_ids]
        on_progress(start + len(part), len(prompts))


def build(lm: LanguageModel, texts: Iterator[list[int]], at_least: int = 2) -> TrigramTable:
    """The table of `texts` for this model. at_least: rows seen more rarely are left out."""
    vocabulary = lm.network.vocabulary
    return TrigramTable.count(texts, vocabulary, tokenizer=fingerprint(lm.tokenizer, vocabulary), at_least=at_least)


@refusing
def main(arguments: Sequence[str] | None = None) -> None:
    parser = recipe_parser("trigram-table", __doc__, output="the table's file, ending in .npz")
    parser.add_argument("texts", type=Path, nargs="*", help="UTF-8 files to count over")
    parser.add_argument("--model", default="smollm2-135m", help="whose tokenizer, and who answers the prompts")
    parser.add_argument("--prompts", type=Path, help="a file of prompts, one a line, that the model answers")
    parser.add_argument("--max-new-tokens", type=int, default=256, help="of each answer")
    parser.add_argument("--at-least", type=int, default=2, help="leave out pairs seen more rarely")
    given = parser.parse_args(arguments)
    if not given.texts and given.prompts is None:
        parser.error("give texts, or --prompts")
    if given.output.suffix != ".npz":
        parser.error("the table's file must end in .npz")
    lm = load(given.model)

    def everything() -> Iterator[list[int]]:
        for path in given.texts:
            yield from text_tokens(lm, path)
        if given.prompts is not None:
            prompts = [line for line in given.prompts.read_text("utf-8-sig").split("\n") if line.strip()]
            yield from own_tokens(
                lm, prompts, given.max_new_tokens, lambda done, total: _say(f"{done} of {total} answers")
            )

    table = build(lm, everything(), given.at_least)
    table.save(given.output)
    _say(f"{len(table)} pairs, {len(table.ids)} successors, {given.output.stat().st_size / 1e6:.1f} MB: {given.output}")


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    main()
