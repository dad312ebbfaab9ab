"""/v1/decodery/detect: whether a text carries the mark of a key that the request brings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from decodery.errors import BadInput, BadPrompt, BadSetting, Refused
from decodery.sampling.settings import ANY_VOCABULARY, OneOf, Real, Text, ValueKind, Whole
from decodery.sampling.watermarks.keys import WatermarkKeys
from decodery.serving.failures import bad_field

if TYPE_CHECKING:
    from decodery.language_model import LanguageModel

OPTIONS: dict[str, ValueKind] = {
    "text": Text(),
    "statistic": OneOf(("edit", "simple")),
    "block": Whole(1),
    "gap": Real(0.0),
    "resamples": Whole(0, 99_999),
    "seed": Whole(0),
    "significance": Real(0.0, 1.0, open_low=True),
}
FIELDS = ("watermark", "token_ids", "probabilities", *OPTIONS)
MOST_WORK = 2e10
"""Of one request, as `watermark.work` counts it: some 20 seconds."""


def detected(body: Mapping[str, Any], lm: LanguageModel) -> dict[str, Any]:
    """What is found, with the verdict in words. Raises Failure."""
    from decodery.provenance import watermark

    given = {name: value for name, value in body.items() if value is not None and name != "model"}
    for name in given.keys() & OPTIONS.keys():
        try:
            given[name] = OPTIONS[name].check(name, given[name], ANY_VOCABULARY)
        except BadSetting as error:
            raise bad_field(name, str(error)) from None
    if "watermark" not in given:
        raise bad_field("watermark", "watermark, the key, is missing.", "missing_required_parameter")
    try:
        key = WatermarkKeys().check("watermark", given.pop("watermark"), lm.network.vocabulary)
    except BadSetting as error:
        raise bad_field("watermark", str(error)) from None
    assert key is not None
    text, ids = given.pop("text", None), given.pop("token_ids", None)
    if (text is None) == (ids is None):
        raise bad_field("text", "give text or token_ids, without the prompt.")
    for name, value in (("token_ids", ids), ("probabilities", given.get("probabilities"))):
        if value is not None and not (isinstance(value, list) and all(type(one) in (int, float) for one in value)):
            raise bad_field(name, f"{name} must be a list of numbers.")
    try:
        tokens = lm.encode(text) if ids is None else ids
        if (
            watermark.work(len(tokens), key, given.get("statistic"), given.get("block"), given.get("resamples"))
            > MOST_WORK
        ):
            raise bad_field(
                "resamples",
                "this would take long; ask for fewer resamples, for the simple statistic, or of a shorter text.",
            )
        found = watermark.detect(tokens, key, **given)
    except (BadInput, BadPrompt, BadSetting, Refused) as error:
        raise bad_field("text" if ids is None else "token_ids", str(error)) from None
    return {"object": "decodery.detection", **found.as_dict(), "sentence": found.sentence}
