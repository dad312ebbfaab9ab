"""Structured outputs: how fast JSON comes by each method, what masks cost, and whether what ended is valid.

`own`: schemas of decodery's own. `glaive`, `github`: lines of a file of JSONSchemaBench (Geng et al., arXiv 2501.10868),
given by `--glaive FILE` and `--github FILE`. An item is a schema; its prompt asks for a document of it. The peer xgrammar,
where it is installed, runs through transformers on the same weights in bfloat16, in the same run.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from decodery.errors import BadSetting
from decodery.evaluation.experiment import Arm, Experiment, Figure, PublishedClaim, Study
from decodery.language_model import LanguageModel
from decodery.models.reading import transformers_model
from decodery.sampling.steps.structured_outputs import StructuredOutputs
from decodery.sampling.structured.constraint import constraint_of
from decodery.sampling.structured.grammars import Compiled, Grammars
from experiments.texts import loaded

LONGEST = 1500
"""Signs of a schema that is taken: longer ones leave no room for an answer."""
NAME, COUNT = {"type": "string", "maxLength": 40}, {"type": "integer", "minimum": 0}
OWN = [
    {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}
    for properties in (
        {"name": NAME, "age": COUNT, "email": NAME},
        {"title": NAME, "pages": COUNT, "authors": {"type": "array", "items": NAME, "maxItems": 3}},
        {"city": NAME, "temperature": {"type": "number"}, "weather": {"enum": ["sunny", "cloudy", "rainy"]}},
        {"product": NAME, "price": {"type": "number"}, "in_stock": {"type": "boolean"}},
        {"from": NAME, "to": NAME, "minutes": COUNT, "changes": COUNT},
        {"question": NAME, "answer": {"type": "boolean"}, "confidence": {"enum": ["low", "medium", "high"]}},
    )
]


@dataclass(frozen=True)
class Settings:
    model: str = "smollm2-135m"
    glaive: str = ""
    github: str = ""
    schemas: int = 20
    tokens: int = 96
    peers: bool = True
    seed: int = 0


def read(file: str, most: int) -> list[Any]:
    """The first schemas of a file that are short enough."""
    if not file:
        raise BadSetting("this study reads a file of JSONSchemaBench; give --glaive or --github with its path.")
    found = []
    for line in Path(file).read_text("utf-8").splitlines():
        schema = json.loads(line)["json_schema"]
        schema = json.loads(schema) if isinstance(schema, str) else schema
        if len(json.dumps(schema)) <= LONGEST:
            found.append(schema)
    return found[:most]


def asked(schema: Any) -> list[dict[str, str]]:
    """The conversation that asks for a document."""
    return [{"role": "user", "content": f"Write a JSON document that fits this schema:\n{json.dumps(schema)}"}]


def valid(text: str, schema: Any) -> bool:
    """Whether a text is a document of a schema, by the package jsonschema."""
    from jsonschema import validators

    try:
        document = json.loads(text)
    except ValueError:
        return False
    kind = validators.validator_for(schema, default=validators.Draft202012Validator)
    return bool(kind(schema).is_valid(document))


def by_method(lm: LanguageModel, method: str, settings: Settings, schema: Any) -> Mapping[str, float]:
    """An answer of ours. mask: seconds in the step of the law. compiling: seconds until the request could begin."""
    lm.forget("experiment")
    masks = [0.0, 0.0]
    apply = StructuredOutputs.apply

    def timed(self: StructuredOutputs, rows: Any, prefixes: Any) -> Any:
        begun = time.perf_counter()
        try:
            return apply(self, rows, prefixes)
        finally:
            masks[0] += time.perf_counter() - begun
            masks[1] += len(rows)

    given: dict[str, Any] = {"structured_outputs": {"json": schema}, "session": "experiment", "seed": settings.seed}
    StructuredOutputs.apply = timed  # type: ignore[method-assign]
    try:
        reply: Any = lm.generate(asked(schema), method, max_new_tokens=settings.tokens, **given)
    except BadSetting:
        return {"refused": 1.0}
    finally:
        StructuredOutputs.apply = apply  # type: ignore[method-assign]
    told = reply.stats
    ended = reply.finish_reason == "stop"
    return {
        "refused": 0.0,
        "tokens": len(reply.token_ids),
        "seconds": told.seconds,
        "decoded": len(reply.token_ids) - 1,
        "decoding": told.seconds - told.first_token_seconds,
        "forwards": told.forwards,
        "masking": masks[0] * 1e6,
        "masked": masks[1],
        "cut": float(not ended),
        **({"valid": float(valid(reply.text, schema))} if ended else {}),
    }


@cache
def peer(model: str) -> tuple[Any, Any]:
    """The transformers model and tokenizer of the same weights."""
    import torch

    lm = loaded(model)
    assert lm.folder is not None
    return transformers_model(lm.folder, torch.bfloat16), lm.tokenizer


def by_xgrammar(settings: Settings, schema: Any) -> Mapping[str, float]:
    """An answer through transformers and xgrammar."""
    import xgrammar
    from xgrammar.contrib.hf import LogitsProcessor

    model, tokenizer = peer(settings.model)
    whole = getattr(tokenizer, "whole", tokenizer)
    info = xgrammar.TokenizerInfo.from_huggingface(whole, vocab_size=model.config.vocab_size)
    try:
        grammar = xgrammar.GrammarCompiler(info).compile_json_schema(json.dumps(schema))
    except RuntimeError:
        return {"refused": 1.0}
    return _generated(settings, schema, [LogitsProcessor(grammar)])


def _generated(settings: Settings, schema: Any, processors: list[Any]) -> Mapping[str, float]:
    import torch

    model, tokenizer = peer(settings.model)
    ids = loaded(settings.model).tokenize(asked(schema))
    times: list[float] = []

    def note(_ids: Any, scores: Any) -> Any:
        times.append(time.perf_counter())
        return scores

    begun = time.perf_counter()
    with torch.inference_mode():
        found = model.generate(
            torch.tensor([ids]), do_sample=False, max_new_tokens=settings.tokens, logits_processor=[*processors, note]
        )
    ended, tokens = time.perf_counter(), found[0, len(ids) :].tolist()
    stops = set(loaded(settings.model).stop_ids)
    stopped = tokens[-1] in stops
    text = tokenizer.decode([token for token in tokens if token not in stops])
    return {
        "refused": 0.0,
        "tokens": len(tokens),
        "seconds": ended - begun,
        "decoded": len(tokens) - 1,
        "decoding": ended - times[0],
        "forwards": len(tokens),
        "cut": float(not stopped),
        **({"valid": float(valid(text, schema))} if stopped else {}),
    }


PLAIN = "autoregressive"


def study(which: str, settings: Settings) -> Study:
    file = {"glaive": settings.glaive, "github": settings.github}.get(which)
    schemas = OWN if file is None else read(file, settings.schemas)
    lm = loaded(settings.model)
    for schema in schemas[:1]:  # first passes, and the tokens of the grammar engine
        lm.generate(asked(schema), "cascade", max_new_tokens=16, structured_outputs={"json": schema})
    arms = [Arm(method, partial(by_method, lm, method, settings)) for method in (PLAIN, "cascade", "prompt-lookup")]
    peers: dict[str, Callable[[Settings, Any], Mapping[str, float]]] = {"xgrammar": by_xgrammar}
    arms += [
        Arm(f"transformers, {name}", partial(run, settings))
        for name, run in peers.items()
        if settings.peers and importlib.util.find_spec(name) is not None
    ]
    figures = (
        Figure("tokens/s", "decoded", per="decoding", form=".0f"),
        Figure("speed", "decoded", per="decoding", against=PLAIN, unit="x"),
        Figure("whole", "tokens", per="seconds", against=PLAIN, unit="x"),
        Figure("tokens/forward", "decoded", per="forwards"),
        Figure("mask, µs a row", "masking", per="masked", form=".0f"),
        Figure("valid of those that ended", "valid", form=".0%", share=True),
        Figure("cut off", "cut", form=".0%", share=True),
        Figure("refused", "refused", form=".0%", share=True),
    )
    named = Path(file).name if file else "decodery's own"
    slowest = max(compiling(lm, schema) for schema in schemas)
    return Study(
        f"{len(schemas)} schemas ({named}), greedy, at most {settings.tokens} tokens. tokens/s and speed: from the first "
        f"token on; whole: with the prompt. To read a schema takes {slowest * 1e3:.0f} ms at most.",
        schemas,
        arms,
        figures,
        [
            PublishedClaim("decodery: twice plain constrained decoding", "speed", "cascade", 2.0),
            PublishedClaim("decodery: a mask takes less than 50 µs", "mask, µs a row", "cascade", 50.0, False),
            PublishedClaim("decodery: what ended is valid", "valid of those that ended", "cascade", every=True),
        ],
        "method",
        lm=lm,
    )


def compiling(lm: LanguageModel, schema: Any) -> float:
    """Seconds from a schema to its first mask, 0 where it is refused."""
    [grammars] = [kept for kept in lm.memory.values() if isinstance(kept, Grammars)]
    begun = time.perf_counter()
    try:
        constraint = constraint_of("structured_outputs", {"json": schema})
        assert constraint is not None
        Compiled(constraint, grammars)
    except BadSetting:
        return 0.0
    return time.perf_counter() - begun


EXPERIMENT = Experiment(
    "structured_outputs",
    "Structured outputs: speed, masks and validity",
    "JSONSchemaBench, Geng et al., arXiv 2501.10868",
    ("experiments.structured_outputs", "decodery.sampling.structured", "decodery.speculative.cascade"),
    Settings(),
    {"own": partial(study, "own"), "glaive": partial(study, "glaive"), "github": partial(study, "github")},
)
