"""Finds thresholds of the early exit `sched` that suit a model, from the margins of its first step.

    decodery train exit-thresholds --model diffusion-lists --prompts prompts.txt --output thresholds.json

Then: decodery generate --model diffusion-lists --method "sched(calibration=thresholds.json)". The high threshold is the 90th
percentile of the margins, the low one the 30th. Nothing is trained.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from decodery.diffusion.sched.margins import Calibration, margins
from decodery.errors import BadInput, Refused
from decodery.models.forward import Attend, Forward
from decodery.training.options import progress_bars, recipe_parser, refusing

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel

PROMPTS = 50
"""Prompts that are enough."""
MEANS, POSITIONS = "means", "positions"


def first_margins(lm: LanguageModel, prompt: Sequence[int], length: int) -> list[float]:
    """The margins of all positions of a canvas of `length` masks behind a prompt. Raises Refused for a causal model."""
    model = lm.diffusion
    if model is None:
        raise Refused(f"{lm.name} is a causal model; sched runs on masked-diffusion models.")
    tokens = [*prompt, *[model.mask_token_id] * length]
    rows = [len(prompt) + offset - model.shift for offset in range(length)]
    [scores] = lm.network.run([Forward(lm.network.new_sequence(), tokens, attend=Attend.FULL, logits=rows)])
    logits = scores.logits.clone()
    logits[:, list(model.reserved)] = -float("inf")
    found: list[float] = margins(logits).tolist()
    return found


def calibrate(
    lm: LanguageModel,
    prompts: Sequence[Sequence[int]],
    *,
    gen_length: int | None = None,
    high: float = 0.9,
    low: float = 0.3,
    of: str = MEANS,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Calibration:
    """Thresholds at the shares `high` and `low` of the margins of the first step.

    prompts: token ids. gen_length: of the canvas, by default the model's. of: "means" over each prompt's canvas, which is what
    an exit compares, or single "positions". Raises Refused for a causal model.
    """
    found: list[float] = []
    for place, prompt in enumerate(prompts):
        values = first_margins(lm, prompt, gen_length or (lm.diffusion.canvas if lm.diffusion else 1))
        found += values if of == POSITIONS else [sum(values) / len(values)]
        on_progress(place + 1, len(prompts))
    return Calibration.of(lm.name, found, len(prompts), high, low)


def read_prompts(path: Path) -> list[str]:
    """One prompt a line, or {"prompt": "..."} a line where the name ends in .jsonl. Raises BadInput."""
    try:
        lines = [line for line in path.expanduser().read_text("utf-8-sig").split("\n") if line.strip()]
        prompts = [json.loads(line)["prompt"] for line in lines] if path.suffix == ".jsonl" else lines
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BadInput(f"the prompts {path} cannot be read: {error}.") from None
    if not prompts:
        raise BadInput(f"the prompts {path} are empty.")
    return prompts


@refusing
def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = recipe_parser("exit-thresholds", __doc__, output="where the thresholds go")
    parser.add_argument("--model", required=True, help="a masked-diffusion model")
    parser.add_argument("--prompts", type=Path, required=True, help=f"about {PROMPTS} prompts, one a line, or .jsonl")
    parser.add_argument("--gen-length", type=int, help="positions of the canvas (default: the model's)")
    parser.add_argument("--high", type=float, default=0.9, help="share of the margins below the threshold at the start")
    parser.add_argument("--low", type=float, default=0.3, help="share of the margins below the threshold at the end")
    parser.add_argument(
        "--of", choices=(MEANS, POSITIONS), default=MEANS, help="means over canvases, or single positions"
    )
    given = parser.parse_args(arguments)
    if not 0 <= given.low <= given.high <= 1:
        parser.error("the shares must be 0 <= low <= high <= 1")
    from decodery.loading import load

    lm = load(given.model)
    prompts = [lm.tokenize(text) for text in read_prompts(given.prompts)]
    with progress_bars() as show:
        found = calibrate(
            lm,
            prompts,
            gen_length=given.gen_length,
            high=given.high,
            low=given.low,
            of=given.of,
            on_progress=lambda done, total: show("first steps", done, total),
        )
    found.write(given.output)
    sys.stdout.write(f"threshold_high={found.high:.3f}, threshold_low={found.low:.3f}, in {given.output}\n")


if __name__ == "__main__":
    main()
