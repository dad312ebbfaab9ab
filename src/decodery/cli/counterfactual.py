"""`decodery counterfactual`: what a recorded run had become, had something been otherwise and chance the same."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from decodery.cli.console import notice, print_json, print_line, remark, visible
from decodery.cli.options import JsonOption, ModelOptions, SettingOptions, with_option_groups
from decodery.cli.outcome import Outcome
from decodery.cli.prompts import as_conversation, characters
from decodery.errors import BadInput

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel

_PLACE = re.compile(r"(\d+)(?:=(.+)|:(\d+))?", re.S)


@with_option_groups
def counterfactual(
    model: ModelOptions,
    settings: SettingOptions,
    run: Annotated[Path, Argument(metavar="RUN", help="What `decodery generate --record` has written.")],
    at: Annotated[
        list[str] | None,
        Option(
            "--at",
            metavar="PLACE[=TEXT]",
            help="Set the tokens of a text from a place of the output on (from 0), or one by its id (PLACE:ID); alone: another "
            "likely token. May be repeated.",
        ),
    ] = None,
    prompt: Annotated[str | None, Option("--prompt", metavar="TEXT", help="Another prompt.")] = None,
    chat: Annotated[bool, Option("--chat", help="The other prompt is what a user says.")] = False,
    noise: Annotated[
        str, Option("--noise", help="same, fresh (for comparison), or posterior (drawn given the recorded text).")
    ] = "same",
    fresh_seed: Annotated[int, Option("--fresh-seed", help="Which fresh noise.")] = 0,
    nucleus: Annotated[float, Option("--nucleus", help="Mass of the tokens that --at PLACE chooses from.")] = 0.9,
    intervention_seed: Annotated[int, Option("--intervention-seed", help="Seed of what --at PLACE chooses.")] = 42,
    forced: Annotated[
        str, Option("--forced", help="How the recorded beginning is read: together, or singly as it was written.")
    ] = "together",
    as_json: JsonOption = False,
) -> None:
    """Replay a recorded run under changes, with the noise that each place of its output has.

    What is changed are tokens (--at), the prompt (--prompt) or the law (any setting, such as --temperature). Without a change
    the run itself comes.

    Example: `decodery counterfactual run.json --at "4= woman"`
    """
    from decodery.evaluation.edit_distance import distance_after
    from decodery.recorded_run import RecordedRun

    recorded = RecordedRun.read(run)
    changes = settings.given()
    if chat and prompt is None:
        raise BadInput("--chat says how --prompt is meant; give another prompt with it.")
    lm = model.load()
    reply = recorded.replay(
        lm,
        "+".join(part for given in at or () for part in _interventions(lm, given)),
        None if prompt is None else as_conversation(characters(prompt), chat, None),
        changes,
        noise=noise,
        fresh_seed=fresh_seed,
        nucleus=nucleus,
        intervention_seed=intervention_seed,
        forced=forced,
    )
    was, now = list(recorded.tokens), reply.token_ids
    told = reply.stats.details["interventions"]
    start = told[0]["place"] + 1 if told else 0
    distance = distance_after(was, now, start)
    text = lm.tokenizer.decode(was, skip_special_tokens=True)
    if as_json:
        found = Outcome.of(reply).as_dict(lm)
        factual = {"text": text, "token_ids": was, "finish_reason": recorded.finish_reason}
        print_json({"factual": factual, "counterfactual": found, "changed": changes, "distance": distance})
        return
    if not recorded.computed_as(lm):
        notice(
            f"the run was computed by the path {recorded.path} in {recorded.dtype}; near ties may fall otherwise here."
        )
    for name, shown in (("factual", text), ("counterfactual", reply.text)):
        print_line(f"{name}: {visible(shown)}")
    for one in told:
        words = [lm.tokenizer.decode([one[key]]) for key in ("token", "instead")]
        remark(f"place {one['place']}: {words[0]!r} in place of {words[1]!r}")
    remark(f"edit distance of what follows: {distance:.2f} of its tokens ({noise} noise)")


def _interventions(lm: LanguageModel, given: str) -> list[str]:
    """What the method calls it, token by token."""
    match = _PLACE.fullmatch(given)
    if match is None:
        raise BadInput(f"--at is written as PLACE, PLACE=TEXT or PLACE:ID, such as --at '4= woman', not {given!r}.")
    place, text, token = match.groups()
    tokens: list[Any] = ["auto" if token is None else token] if text is None else lm.encode(characters(text))
    return [f"{int(place) + offset}:{one}" for offset, one in enumerate(tokens)]
