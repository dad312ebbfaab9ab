"""What each token of a text was chosen for, by any of the ways there are, as a table and as a page."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from decodery.audit.baselines import ATTENTION, GRADIENTS, Inside, occlusion, random_weights
from decodery.audit.evidence import Tell, silent
from decodery.audit.reagent import Importance, ReagentSettings, reagent
from decodery.audit.replacers import (
    GroupReplacer,
    InferentialReplacer,
    MaskedReplacer,
    Replacer,
    UniformReplacer,
    parts_of_speech,
)
from decodery.errors import BadInput, near
from decodery.evaluation.intervals import Array

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel

WAYS = ("reagent", "occlusion", *GRADIENTS, *ATTENTION, "random")
REPLACERS = ("inferential", "uniform", "pos", "masked")


@dataclass(frozen=True)
class AttributedToken:
    """A token and how much each token before it matters. place: in the text. weights: [place], together 1. converged,
    rationale, steps: of reagent, see `Importance`; None of other ways."""

    place: int
    weights: Array
    converged: bool | None = None
    rationale: tuple[int, ...] | None = None
    steps: int | None = None


@dataclass(frozen=True)
class AttributionReport:
    """texts: what each token says. ids: the tokens. prompt_tokens: how many were given. rows: of the tokens after them."""

    model: str
    way: str
    texts: tuple[str, ...]
    ids: tuple[int, ...]
    prompt_tokens: int
    rows: tuple[AttributedToken, ...]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": self.model,
            "by": self.way,
            "tokens": list(self.texts),
            "token_ids": list(self.ids),
            "prompt_tokens": self.prompt_tokens,
            "rows": [
                {
                    "place": row.place,
                    "weights": row.weights.tolist(),
                    **({} if row.converged is None else {"converged": row.converged}),
                    **({} if row.rationale is None else {"rationale": list(row.rationale)}),
                    **({} if row.steps is None else {"steps": row.steps}),
                }
                for row in self.rows
            ],
        }

    def as_html(self) -> str:
        """A page of its own that shows, for the token under the pointer, what it depends on; nothing is fetched."""
        spans = "".join(
            f'<span id="t{place}"{" class=new tabindex=0" if place >= self.prompt_tokens else ""}>{html.escape(text)}</span>'
            for place, text in enumerate(self.texts)
        )
        weights = {row.place: [round(float(weight), 4) for weight in row.weights] for row in self.rows}
        loose = [row.place for row in self.rows if row.converged is False]
        return PAGE.format(
            title=html.escape(f"{self.way}, {self.model}"),
            spans=spans,
            weights=json.dumps(weights),
            loose=json.dumps(loose),
        )


PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 16px/1.7 system-ui, sans-serif; max-width: 50rem; margin: 2rem auto; padding: 0 1rem; }}
p {{ white-space: pre-wrap; overflow-wrap: anywhere; }}
.new {{ border-bottom: 2px solid #888; cursor: pointer; }}
.loose {{ border-bottom-style: dotted; }}
.asked {{ outline: 2px solid; }}
</style>
<h1>What a token was chosen for</h1>
<p id="about">{title}. Point at an underlined token, or move to it with the tab key. The darker a token before it, the more it
matters; dotted: the search did not converge.</p>
<p>{spans}</p>
<script>
const weights = {weights}, loose = {loose};
const at = (place) => document.getElementById("t" + place);
function show(place) {{
  const row = weights[place], most = Math.max(...row);
  document.querySelectorAll("p span").forEach((span) => {{
    span.style.background = span.title = "";
    span.classList.remove("asked");
  }});
  row.forEach((weight, other) => {{
    at(other).style.background = `rgba(255, 140, 0, ${{most > 0 ? 0.85 * weight / most : 0}})`;
    at(other).title = (100 * weight).toFixed(1) + " %";
  }});
  at(place).classList.add("asked");
}}
for (const place of Object.keys(weights)) {{
  at(place).addEventListener("mouseenter", () => show(place));
  at(place).addEventListener("focus", () => show(place));
}}
loose.forEach((place) => at(place).classList.add("loose"));
</script>
</html>
"""


def replacer_of(name: str, lm: LanguageModel, folder: str = "") -> Replacer:
    """A replacer by name. folder: of a masked language model, for "masked". Raises BadInput."""
    if name == "inferential":
        return InferentialReplacer()
    if name == "uniform":
        return UniformReplacer()
    if name == "pos":
        return GroupReplacer(parts_of_speech([lm.tokenizer.decode([id]) for id in range(lm.network.vocabulary)]))
    if name == "masked":
        if not folder:
            raise BadInput("the replacer masked needs the folder of a masked language model.")
        return MaskedReplacer(folder, lm.tokenizer.decode, lm.encode)
    raise BadInput(f"there is no replacer {name!r}; {near(name, REPLACERS)}")


def attribute(
    lm: LanguageModel,
    prompt: Any,
    continuation: Sequence[int],
    way: str = "reagent",
    replacer: Replacer | None = None,
    settings: ReagentSettings | None = None,
    tell: Tell = silent,
) -> AttributionReport:
    """What each token of a continuation depends on among all tokens before it, those of the prompt and of the continuation.

    prompt: in any form that `generate` takes. way: one of `WAYS`. replacer, settings: of reagent; None: the model's own
    predictions, and the defaults. Raises BadInput, BadPrompt, and Refused where gradients or attention are asked of a path
    without modules.
    """
    if way not in WAYS:
        raise BadInput(f"there is no attribution {way!r}; {near(way, WAYS)}")
    if not continuation:
        raise BadInput("there is no token to attribute; give a continuation, or let the model write one.")
    before = list(lm.tokenize(prompt))
    ids = [*before, *continuation]
    if len(ids) > lm.network.context:
        raise BadInput(f"the text has {len(ids)} tokens, and {lm.name} has a context of {lm.network.context}.")
    settings, replacer = settings or ReagentSettings(), replacer or InferentialReplacer()
    inside = Inside(lm) if way in (*GRADIENTS, *ATTENTION) else None
    chance = np.random.Generator(np.random.Philox(key=settings.seed))
    rows = []
    for place in range(len(before), len(ids)):
        tell(way, place - len(before), len(continuation))
        context, target = ids[:place], ids[place]
        if way == "reagent":
            found: Importance = lm.run(reagent(lm.network, context, target, replacer, settings))
            rows.append(AttributedToken(place, found.weights, found.converged, found.rationale, found.steps))
        elif way == "occlusion":
            rows.append(AttributedToken(place, lm.run(occlusion(lm.network, context, target))))
        elif inside is not None:
            rows.append(AttributedToken(place, inside.weights(way, context, target)))
        else:
            rows.append(AttributedToken(place, random_weights(place, chance)))
    return AttributionReport(
        lm.name, way, tuple(lm.tokenizer.decode([id]) for id in ids), tuple(ids), len(before), tuple(rows)
    )
