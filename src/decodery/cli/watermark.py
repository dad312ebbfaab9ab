"""`decodery watermark`: a new key."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from decodery.cli.console import print_line
from decodery.cli.options import ModelOptions, with_option_groups
from decodery.sampling.watermarks.keys import SCHEMES, fresh_key


@with_option_groups
def watermark(
    model: ModelOptions,
    path: Annotated[Path, Argument(metavar="KEY.json", help="The file to write; it must not exist.")],
    scheme: Annotated[str, Option("--scheme", help=f"{', '.join(SCHEMES)}.")] = "exp",
    length: Annotated[int | None, Option("--length", help="exp, its: entries; no text may be longer.")] = None,
    window: Annotated[int | None, Option("--window", help="gumbel, kgw, synthid: last tokens that decide.")] = None,
    share: Annotated[float | None, Option("--share", help="kgw: share of the tokens that is green.")] = None,
    bias: Annotated[float | None, Option("--bias", help="kgw: what is added to their scores.")] = None,
    layers: Annotated[int | None, Option("--layers", help="synthid: rounds of the tournament.")] = None,
) -> None:
    """Write a new secret key, for the tokens of a model.

    `decodery generate --watermark KEY.json` marks a text with it, `decodery detect --key KEY.json` finds the mark again.

    Example: `decodery watermark key.json --length 512`
    """
    fields = {"length": length, "window": window, "share": share, "bias": bias, "layers": layers}
    given = {name: value for name, value in fields.items() if value is not None}
    fresh_key(scheme, 2**31, **given)  # what is wrong is told before a model is loaded
    key = fresh_key(scheme, model.load().network.vocabulary, **given)
    key.write(path)
    print_line(f"{path}: {key.summary}")
