"""`decodery next-byte`: what a model says of the byte after a prompt."""

from __future__ import annotations

from typing import Annotated

from typer import Argument, Option

from decodery.cli.console import print_json, print_line, print_table
from decodery.cli.options import JsonOption, ModelOptions, named, with_option_groups
from decodery.cli.prompts import as_conversation, characters
from decodery.errors import BadInput


@with_option_groups
def next_byte(
    model: ModelOptions,
    prompt: Annotated[str, Argument(metavar="PROMPT", help="A text; it may end inside a word.")],
    chat: Annotated[bool, Option("--chat", help="The prompt is what a user says.")] = False,
    top: Annotated[int, Option("--top", help="So many of the likeliest bytes.")] = 10,
    models: Annotated[
        str | None,
        Option("--models", metavar="NAMES", help="Further models, of any tokenizers, with commas: their mean."),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Show the likeliest bytes after a prompt, summed over all ways in which tokens may cover its end.

    Example: `decodery next-byte "The capital of France is Par"`
    """
    if not 1 <= top <= 256:
        raise BadInput(f"--top is a number of bytes, 1 to 256, not {top}.")
    found = model.load().next_byte(as_conversation(characters(prompt), chat, None), models=named(models))
    likeliest = [(byte, value) for byte, value in found.top(top) if value > 0]
    if as_json:
        told = [{"byte": byte[0], "probability": value} for byte, value in likeliest]
        print_json({"next": told, "end": found.end, "leak": found.leak, "forwards": found.forwards})
        return
    rows = [
        (str(byte[0]), repr(byte.decode("latin-1")) if byte[0] < 128 else "", f"{value:.4f}")
        for byte, value in likeliest
    ]
    print_table(("byte>", "sign", "probability>"), [*rows, ("end", "", f"{found.end:.4f}")])
    print_line(f"{found.leak:.2g} of the mass was on tokens that cannot come there.")
