"""A run as a small file: what was decoded, by which model and law, and with which noise; and what would have come otherwise.

The noise of a run follows from its seed and from the places of its output (`sampling/chance/structural.py`), so that the file
holds ids and settings alone. It is replayed on the very model, tokenizer and steps of the law that it names, or not at all.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from decodery.engine.method import Method
from decodery.engine.settings import Settings, aliases
from decodery.engine.target import Target
from decodery.errors import BadInput, BadSetting, Refused, near
from decodery.sampling.chance import Source, Structural
from decodery.search.counterfactual_generation import CounterfactualGeneration
from decodery.speculative.continuations.trigrams import fingerprint

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel
    from decodery.prompts import Prompt
    from decodery.replies import Reply

FORMAT = "decodery run 1"
"""What kind of file it is, and its version."""
FIXED = ("seed", "chance", "n")
"""Settings that make the noise of a run, and so cannot be changed when it is replayed."""


@dataclass(frozen=True)
class RecordedRun:
    """One text that was decoded, with all that it takes to replay it.

    model: its name, for people. weights, tokenizer: tell it apart from others. path, dtype: how it was computed; another one
    may round near ties otherwise. prompt, tokens: ids of the prompt and of the output, its end token included. order: the
    steps of the law. settings: those that differ from their defaults, as JSON has them; seed and chance always.
    """

    model: str
    weights: str
    tokenizer: str
    path: str
    dtype: str
    prompt: tuple[int, ...]
    tokens: tuple[int, ...]
    finish_reason: str
    order: tuple[str, ...]
    settings: Mapping[str, Any]

    @classmethod
    def of(cls, lm: LanguageModel, reply: Reply, settings: Mapping[str, Any]) -> RecordedRun:
        """The run of a reply. settings: what was given to `generate`. Raises what `check_recordable` raises."""
        if not reply.exactness.same_tokens:
            raise _not_plain(reply.method)
        told = check_recordable(settings, lm.network.vocabulary)
        return cls(
            **_identity(lm),
            **_computation(lm),
            prompt=tuple(reply.prompt_token_ids),
            tokens=tuple(reply.token_ids),
            finish_reason=reply.finish_reason,
            order=reply.order,
            settings={**told, "seed": reply.seed},
        )

    def write(self, path: Path | str) -> None:
        """As JSON."""
        told = {"format": FORMAT, **dataclasses.asdict(self)}
        Path(path).write_text(json.dumps(told, indent=1) + "\n", "utf-8")

    @classmethod
    def read(cls, path: Path | str) -> RecordedRun:
        """Raises BadInput, which names the field, where the file is none that `write` wrote."""
        try:
            told = json.loads(Path(path).read_text("utf-8"))
        except OSError as error:
            raise BadInput(f"{path} cannot be read: {error.strerror}.") from None
        except (ValueError, RecursionError):
            raise BadInput(f"{path} is no JSON file, and so no recorded run.") from None
        if not isinstance(told, dict) or told.pop("format", None) != FORMAT:
            raise BadInput(f'{path} is no recorded run of this version; one says "format": "{FORMAT}".')
        known = {field.name for field in dataclasses.fields(cls)}
        for name in told:
            if name not in known:
                raise BadInput(f"{path} has a field {name!r}, which no recorded run has; {near(name, known)}")
        for name in sorted(known):
            if name not in told:
                raise BadInput(f"{path} has no field {name!r}; record the run again.")
            if not _fits(name, told[name]):
                raise BadInput(f"{path}: {name} must be {_KINDS.get(name, 'a text')}, not {told[name]!r}.")
        if not told["prompt"]:
            raise BadInput(f"{path}: prompt must hold at least one token.")
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in told.items()}
        return cls(**fields)

    def check(self, lm: LanguageModel) -> Settings:
        """The settings of the run. Raises BadInput where it cannot be replayed with this model, and says why."""
        here = _identity(lm)
        if self.weights != here["weights"]:
            raise BadInput(
                f"the run was recorded with {self.model}, and the weights of {lm.name} are others; load that model."
            )
        if self.tokenizer != here["tokenizer"]:
            raise BadInput(
                f"the run was recorded with another tokenizer than that of {lm.name}, so its ids mean something else; load the "
                "model with its own."
            )
        vocabulary = lm.network.vocabulary
        if (most := max(*self.prompt, *self.tokens, 0)) >= vocabulary:
            raise BadInput(f"the run has a token {most}, and {lm.name} has {vocabulary} tokens.")
        try:
            settings = Settings.of(self.settings, vocabulary)
        except BadSetting as error:
            raise BadInput(f"the law of the run is none of this version: {error}") from None
        if not isinstance(settings.chance, Structural) or settings.seed is None or settings.n != 1:
            raise BadInput(
                "the run does not say its noise: settings need a seed and chance structural, and n may be 1 only."
            )
        order = tuple(step.name for step in settings.active_steps())
        if order != self.order:
            was, now = ", ".join(self.order) or "none", ", ".join(order) or "none"
            raise BadInput(f"the law of the run had the steps {was}, and its settings now have {now}.")
        return settings

    def computed_as(self, lm: LanguageModel) -> bool:
        """Whether the model computes as it did then; otherwise near ties may fall otherwise."""
        return _computation(lm) == {"path": self.path, "dtype": self.dtype}

    def replay(
        self,
        lm: LanguageModel,
        interventions: str = "",
        prompt: Prompt | None = None,
        changes: Mapping[str, Any] | None = None,
        **parameters: Any,
    ) -> Reply:
        """What would have come, had something been otherwise and chance the same.

        interventions, parameters: as `CounterfactualGeneration` has them. prompt: another one. changes: settings of the law
        or the output that are others, an intervention on the scores. Nothing of it: the run itself.
        Raises BadInput where the run is of another model, BadSetting where the noise would be another.
        """
        self.check(lm)
        changes = dict(changes or {})
        names = aliases()
        for name in changes:
            if names.get(name, name) in FIXED:
                raise BadSetting(
                    f"{name} makes the noise of the recorded run, which is what stays the same; noise=fresh is another."
                )
        if parameters.get("noise") == "posterior" and (prompt is not None or changes):
            raise BadSetting(
                "posterior noise is that of the recorded text under its own prompt and law; set tokens, and leave these alone."
            )
        factual = "+".join(map(str, self.tokens))
        method = CounterfactualGeneration(interventions=interventions, factual=factual, **parameters)
        changed = {names.get(name, name): value for name, value in changes.items()}
        settings = {**self.settings, **changed}
        seed = settings.pop("seed")
        reply: Reply = lm.generate(list(self.prompt) if prompt is None else prompt, method, seed=seed, **settings)
        return reply


def check_recordable(settings: Mapping[str, Any], vocabulary: int, method: Method | None = None) -> dict[str, Any]:
    """The settings as JSON has them. Raises BadSetting or Refused where a run with them, or by this method, cannot be
    recorded."""
    if method is not None and not method.exactness.same_tokens:
        raise _not_plain(method.spec())
    checked = Settings.of(settings, vocabulary)
    if not isinstance(checked.chance, Structural):
        raise BadSetting(
            "a run is recorded with chance structural, whose noise belongs to places of the output, "
            f"not with {checked.chance.name}."
        )
    if checked.n != 1:
        raise BadSetting(f"a recorded run is that of one text, not of n={checked.n}.")
    names, told = aliases(), {}
    for name, value in settings.items():
        told[names.get(name, name)] = _as_json(name, value)
    return {**told, "chance": checked.chance.spec()}


def _not_plain(method: str) -> Refused:
    return Refused(
        f"{method} does not give the very tokens of plain decoding, and such runs alone are recorded; autoregressive and "
        "cascade do."
    )


def _identity(lm: LanguageModel) -> dict[str, str]:
    return {
        "model": lm.network.name,
        "weights": lm.network.fingerprint(),
        "tokenizer": fingerprint(lm.tokenizer, lm.network.vocabulary),
    }


def _computation(lm: LanguageModel) -> dict[str, str]:
    return {"path": lm.network.path, "dtype": str(lm.network.dtype).removeprefix("torch.")}


def _as_json(name: str, value: Any) -> Any:
    """A setting as JSON has it. Raises BadSetting for what is code."""
    if isinstance(value, Source | Target):
        return value.spec()
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        raise BadSetting(f"{name} cannot be written to a file, so a run with it is not recorded.") from None


_KINDS = {
    "prompt": "a list of token ids",
    "tokens": "a list of token ids",
    "order": "a list of texts",
    "settings": "an object",
}


def _fits(name: str, value: Any) -> bool:
    if name in ("prompt", "tokens"):
        return _listed(value, int) and all(token >= 0 for token in value)
    if name == "order":
        return _listed(value, str)
    return isinstance(value, dict if name == "settings" else str)


def _listed(value: Any, kind: type) -> bool:
    if not isinstance(value, list):
        return False
    items: Sequence[Any] = value
    return all(isinstance(item, kind) and not isinstance(item, bool) for item in items)
