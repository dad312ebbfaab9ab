"""All methods by name: the one source of the command line, the documentation, the server and `decodery.methods()`."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.metadata
import inspect
import logging
from dataclasses import dataclass
from typing import Any

from decodery.engine.declared import build, parse_spec
from decodery.engine.method import Exactness, Method
from decodery.engine.needs import NEXT_TOKENS, Requirement, Scoring
from decodery.engine.parameters import TYPES, Parameter
from decodery.errors import BadParameter, MethodUnavailable, UnknownMethod, near
from decodery.models.kinds import Kind

log = logging.getLogger("decodery")

BUILT_IN = {
    "autoregressive": "decodery.engine.autoregressive:Autoregressive",
    "prompt-lookup": "decodery.speculative.prompt_lookup:PromptLookup",
    "suffix-automaton": "decodery.speculative.suffix_automaton.method:SuffixAutomatonLookup",
    "token-recycling": "decodery.speculative.token_recycling:TokenRecycling",
    "cascade": "decodery.speculative.cascade.method:Cascade",
    "approximate-match-lookup": "decodery.speculative.approximate_match_lookup.method:ApproximateMatchLookup",
    "adaptive-draft-verification": "decodery.speculative.adaptive_draft_verification:AdaptiveDraftVerification",
    "private-frequency-estimation": (
        "decodery.speculative.private_frequency_estimation.method:PrivateFrequencyEstimation"
    ),
    "draft-model": "decodery.speculative.draft_model:DraftModel",
    "specdec-pp": "decodery.speculative.specdec_pp.method:SpecDecPlusPlus",
    "recursive-speculative-decoding": (
        "decodery.speculative.recursive_speculative_decoding:RecursiveSpeculativeDecoding"
    ),
    "spectr": "decodery.speculative.spectr:Spectr",
    "optimal-multi-draft": "decodery.speculative.optimal_multi_draft:OptimalMultiDraft",
    "byte-draft-model": "decodery.speculative.byte_draft_model:ByteDraftModel",
    "swift": "decodery.speculative.swift.method:Swift",
    "del": "decodery.speculative.del_.method:DynamicExit",
    "kangaroo": "decodery.speculative.kangaroo.method:Kangaroo",
    "contrastive-search": "decodery.search.contrastive_search:ContrastiveSearch",
    "cautious-next-token": "decodery.search.cautious_next_token:CautiousNextToken",
    "adadec": "decodery.search.adadec:AdaptiveDecoding",
    "ariel": "decodery.search.ariel:Ariel",
    "counterfactual-generation": "decodery.search.counterfactual_generation:CounterfactualGeneration",
    "soft-thinking": "decodery.search.soft_thinking.method:SoftThinking",
    "byte-level-probabilities": "decodery.bytewise.byte_level_probabilities:ByteLevelProbabilities",
    "awrs": "decodery.constraints.awrs:AdaptiveWeightedRejection",
    "grammar-aligned-decoding": "decodery.constraints.grammar_aligned_decoding:GrammarAlignedDecoding",
    "beam-search": "decodery.search.beam_search:BeamSearch",
    "best-of-n": "decodery.search.best_of_n:BestOfN",
    "qmcpy": "decodery.search.qmcpy:LowDiscrepancyEstimate",
    "self-consistency": "decodery.search.self_consistency:SelfConsistency",
    "set-based-prompting": "decodery.search.set_based_prompting:SetBasedPrompting",
    "superposed-decoding": "decodery.search.superposed_decoding.method:SuperposedDecoding",
    "diverse-beam-search": "decodery.search.diverse_beam_search:DiverseBeamSearch",
    "diffadapt": "decodery.routing.diffadapt.method:DiffAdapt",
    "masked-diffusion": "decodery.diffusion.masked_diffusion:MaskedDiffusionDecoding",
    "freedave": "decodery.diffusion.freedave:FreeDave",
    "freedave-plus-plus": "decodery.diffusion.freedave:FreeDavePlusPlus",
    "freecache": "decodery.diffusion.freecache.method:FreeCacheDecoding",
    "guided-diffusion": "decodery.diffusion.guided_diffusion:GuidedDiffusion",
    "hex": "decodery.diffusion.hex:HiddenExperts",
    "adablock": "decodery.diffusion.adablock:AdaBlock",
    "localleap": "decodery.diffusion.localleap:LocalLeap",
    "approximate-joint-sampling": "decodery.diffusion.approximate_joint_sampling.method:ApproximateJointSampling",
    "dparallel": "decodery.diffusion.dparallel:DParallel",
    "sched": "decodery.diffusion.sched.method:SchED",
    "any-subset-autoregressive": "decodery.any_order.any_subset_autoregressive:AnySubsetAutoregressive",
    "any-subset-speculative": "decodery.any_order.any_subset_speculative:AnySubsetSpeculative",
    "insertion-language-models": "decodery.insertion.insertion_language_models:InsertionLanguageModels",
}
"""Name -> where its class is. Adding a method is one file and one line here."""

ENTRY_POINTS = "decodery.methods"
"""The entry-point group in which other packages declare methods: name -> "module:Class"."""


@dataclass(frozen=True)
class MethodInfo:
    """A registry entry."""

    name: str
    title: str
    paper: str
    exactness: Exactness
    family: str
    needs: tuple[Requirement, ...]
    parameters: tuple[Parameter, ...]
    summary: str
    refuses: dict[str, str]
    example: str
    """A spec that runs."""

    @classmethod
    def of(cls, method: type[Method]) -> MethodInfo:
        summary = (method.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
        return cls(
            method.name,
            method.title,
            method.paper,
            method.exactness,
            method.family,
            method.needs,
            method.parameters(),
            " ".join(summary.split()),
            dict(method.refuses),
            method.example or method.name,
        )

    @property
    def extras(self) -> tuple[Requirement, ...]:
        """What it needs beside a model of the right kind."""
        return tuple(need for need in self.needs if need.extra)

    @property
    def wanted(self) -> list[str]:
        """What it needs, in words; a causal model, with whatever a usual one can do, is taken for granted."""
        return [need.words for need in self.needs if need.extra or (isinstance(need, Scoring) and need != NEXT_TOKENS)]

    def suits(self, kinds: Kind) -> bool:
        """Whether it decodes with models of these kinds."""
        return all(need.kind in kinds for need in self.needs if isinstance(need, Scoring))

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.name,
            "title": self.title,
            "summary": self.summary,
            "paper": self.paper,
            "exactness": str(self.exactness),
            "family": self.family,
            "needs": self.wanted,
            "refuses": self.refuses,
            "example": self.example,
            "parameters": [
                {
                    "name": p.name,
                    "type": p.type,
                    "default": p.default,
                    "help": p.help,
                    "low": p.low,
                    "high": p.high,
                    "choices": list(p.choices),
                    "auto": p.auto,
                    "only": p.condition,
                }
                for p in self.parameters
            ],
        }


_classes: dict[str, type[Method]] = {}
_external: dict[str, importlib.metadata.EntryPoint] | None = None


def _entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    global _external  # a cache of what is installed; read once, since scanning packages is slow
    if _external is None:
        _external = {point.name: point for point in importlib.metadata.entry_points(group=ENTRY_POINTS)}
    return _external


def names() -> list[str]:
    """The names of all methods, ours first."""
    return [*BUILT_IN, *(name for name in {**_entry_points(), **_classes} if name not in BUILT_IN)]


def register(cls: type[Method]) -> type[Method]:
    """Add a method class at run time (also usable as a decorator). Raises ValueError where it breaks the contract."""
    conform(cls)
    if BUILT_IN.get(cls.name, _path(cls)) != _path(cls):
        raise ValueError(f"the name {cls.name!r} is taken by a method of decodery")
    _classes[cls.name] = cls
    return cls


def _path(cls: type[Method]) -> str:
    return f"{cls.__module__}:{cls.__qualname__}"


def conform(cls: type[Method]) -> None:
    """Raise ValueError where a class does not declare what a method must."""
    if not (isinstance(cls, type) and issubclass(cls, Method)):
        raise ValueError(f"{cls!r} is no subclass of decodery.Method")
    if inspect.isabstract(cls):
        raise ValueError(f"{cls.__name__} must define decode")
    for attribute in ("name", "title", "paper", "exactness", "family"):
        if not getattr(cls, attribute, None):
            raise ValueError(f"{cls.__name__} must set the class attribute {attribute}")
    if not all(isinstance(need, Requirement) for need in cls.needs):
        raise ValueError(f"{cls.__name__}.needs must be of decodery.engine.needs, not words")
    if not isinstance(cls.exactness, Exactness):
        raise ValueError(f"{cls.__name__}.exactness must be an Exactness")
    if any(isinstance(value, dataclasses.Field) for value in vars(cls).values()):
        raise ValueError(f"{cls.__name__} has parameters, so it must be decorated with @dataclass(frozen=True)")
    for field in dataclasses.fields(cls):
        if not field.metadata.get("help") and not field.metadata.get("unused"):
            raise ValueError(f"parameter {field.name} of {cls.__name__} needs a help text; make it with parameter()")
        for other in {name for one in field.metadata.get("only", ()) for name in one}:
            if other not in {known.name for known in dataclasses.fields(cls)}:
                raise ValueError(f"parameter {field.name} of {cls.__name__} depends on {other}, which is no parameter")
    for item in cls.parameters():
        if not set(item.type.split(" | ")) <= {*TYPES, "auto"}:
            raise ValueError(
                f"parameter {item.name} of {cls.__name__} is {item.type}, but must be of {', '.join(TYPES)}"
            )
    try:
        build(cls, parse_spec(cls.example or cls.name)[1])
    except (BadParameter, TypeError) as error:
        raise ValueError(f"the defaults of {cls.__name__} are not valid: {error}") from error


def find(name: str) -> type[Method]:
    """The class of a method. Raises UnknownMethod with near names, or MethodUnavailable for a broken plug-in."""
    if name in _classes:
        return _classes[name]
    if name in BUILT_IN:
        module, _, attribute = BUILT_IN[name].partition(":")
        cls: type[Method] = getattr(importlib.import_module(module), attribute)
    elif name in _entry_points():
        point = _entry_points()[name]
        try:
            cls = point.load()
            conform(cls)
            if cls.name != name:
                raise ValueError(f"it calls itself {cls.name!r}")
        except Exception as error:
            raise MethodUnavailable(f"the method {name!r} comes from {point.value}, which fails: {error}.") from error
    else:
        raise UnknownMethod(f"there is no method {name!r}; {near(name, names())}")
    return register(cls)


def method(given: str | Method) -> Method:
    """A method from "name", "name(key=value)" or an object (handed back)."""
    if isinstance(given, Method):
        return given
    if not isinstance(given, str):
        raise BadParameter(f"a method is given by its name or as a decodery Method, not as {type(given).__name__}.")
    name, values = parse_spec(given)
    return build(find(name), values)


def files_of(given: Method) -> list[str]:
    """The parameters by which a method, or one within it, is given a file of this machine. A server refuses them: who asks
    over a network has no business with its files."""
    found = []
    for item in given.parameters():
        value = getattr(given, item.name)
        if item.names == "file" and value != item.default:
            found.append(item.name)
        elif item.names == "method" and isinstance(value, str):
            found += files_of(method(value))
    return found


def methods() -> list[MethodInfo]:
    """The entries of all methods. A broken plug-in is left out, with a warning in the log."""
    entries = []
    for name in names():
        try:
            entries.append(MethodInfo.of(find(name)))
        except MethodUnavailable as error:
            log.warning("%s", error)
    return entries
