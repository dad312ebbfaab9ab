"""`decodery detect`: whether a text carries a watermark."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from typer import Argument, Option

from decodery.cli.console import Bars, Counter, print_json, print_line, remark
from decodery.cli.options import DEFAULT_MODEL, JsonOption, ModelOption, SeedOption
from decodery.cli.prompts import STANDARD_INPUT, characters, read_prompt
from decodery.errors import BadInput
from decodery.sampling.watermarks.keys import read_key

if TYPE_CHECKING:
    from decodery.provenance.watermark import Detection


def detect(
    file: Annotated[Path, Argument(metavar="FILE", help="The text, without the prompt; - is standard input.")],
    key: Annotated[Path, Option("--key", metavar="KEY.json", help="What `decodery watermark` has written.")],
    model: ModelOption = DEFAULT_MODEL,
    statistic: Annotated[
        str | None,
        Option(
            "--statistic",
            help="edit or simple (exp, its); default: edit, unless the text is so long that it takes minutes.",
        ),
    ] = None,
    block: Annotated[
        int | None, Option("--block", help="So many successive tokens are to fit.", show_default="all")
    ] = None,
    gap: Annotated[
        float | None,
        Option("--gap", help="Edit: cost of leaving out a token or an entry.", show_default="0 for exp, 0.4 for its"),
    ] = None,
    resamples: Annotated[
        int | None, Option("--resamples", help="Fresh keys of the permutation test.", show_default="199")
    ] = None,
    seed: SeedOption = 0,
    significance: Annotated[float, Option("--significance", help="Largest p-value that is a detection.")] = 0.01,
    with_model: Annotated[
        bool,
        Option("--with-model", help="Score the text with the model, to tell whether it could show a mark (exp, its)."),
    ] = False,
    prompt: Annotated[
        str | None, Option("--prompt", metavar="TEXT", help="With --with-model: what stood before the text.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Look for the mark of a key in a text. Nothing but the model's tokenizer is needed.

    The p-value is how likely a text that does not depend on the key fits it as well.

    Example: `decodery detect text.txt --key key.json`
    """
    from decodery.loading import load, load_tokenizer
    from decodery.prompts import PromptReader
    from decodery.provenance import watermark
    from decodery.provenance.surprise import probabilities_of

    if prompt is not None and not with_model:
        raise BadInput("--prompt is for --with-model; the mark is looked for without it.")
    secret = read_key(key)
    text = read_prompt(STANDARD_INPUT, None) if str(file) == STANDARD_INPUT else read_prompt(None, file)
    with Bars(f"loading {model}") as progress:
        lm = load(model, progress=progress) if with_model else None
        tokenizer = load_tokenizer(model, progress) if lm is None else lm.tokenizer
    tokens = PromptReader(tokenizer, model, secret.vocabulary).encode(text, add_special_tokens=False)
    likely, temperature = (None, None)
    if lm is not None:
        likely, temperature = probabilities_of(lm, tokens, [] if prompt is None else lm.tokenize(characters(prompt)))
    with Counter() as counter:
        found = watermark.detect(
            tokens,
            secret,
            statistic=statistic,
            block=block,
            gap=gap,
            resamples=resamples,
            seed=seed,
            significance=significance,
            probabilities=likely,
            tell=counter,
        )
    if as_json:
        print_json({**found.as_dict(), "temperature": temperature})
        return
    print_line(found.verdict)
    print_line(found.sentence)
    print_line(_numbers(found, temperature))
    if found.resamples and found.p_value == 1 / (found.resamples + 1):
        remark(f"the least p-value of {found.resamples} fresh keys; more of them may tell a smaller one.")


def _numbers(found: Detection, temperature: float | None) -> str:
    parts = [
        f"p = {found.p_value:.3g}",
        f"{found.scheme}, {found.statistic} {found.value:.4g}",
        f"{found.tokens} tokens",
    ]
    if found.resamples:
        parts.append(f"{found.resamples} fresh keys")
    if found.bound is not None:
        parts.append(f"bound {found.bound:.3g}")
    if found.potential is not None:
        parts.append(f"likeliest at a temperature of {temperature:g}, potential {found.potential:.2f} a token")
    if found.reachable is not None:
        parts.append(f"with the mark p = {found.reachable:.3g}")
    return "; ".join(parts)
