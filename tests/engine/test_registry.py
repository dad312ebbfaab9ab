"""The registry: what is built in, what others add, and what is held against them."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import subprocess
import sys
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pytest

import decodery
from decodery.engine import registry
from decodery.engine.autoregressive import Autoregressive
from decodery.engine.method import Decoding, Exactness, Method, parameter
from decodery.engine.needs import MASKED_POSITIONS, NEXT_TOKENS, Companion, Requirement
from decodery.errors import BadParameter, MethodUnavailable, UnknownMethod


@dataclass(frozen=True)
class Foreign(Method):
    """A method of another package.

    More about it.
    """

    name: ClassVar[str] = "foreign"
    title: ClassVar[str] = "A foreign method"
    paper: ClassVar[str] = "nobody, 2024"
    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    family: ClassVar[str] = "testing"

    depth: int = parameter(2, "how deep", low=1)

    def decode(self, request: Any) -> Decoding:
        yield from ()


@dataclass(frozen=True)
class Misnamed(Foreign):
    name: ClassVar[str] = "other-name"


@pytest.fixture(autouse=True)
def _clean_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_classes", dict(registry._classes))
    monkeypatch.setattr(registry, "_external", None)


def install(monkeypatch: pytest.MonkeyPatch, **points: str) -> None:
    """Pretend that packages with these entry points are installed."""

    def entry_points(group: str) -> list[importlib.metadata.EntryPoint]:
        assert group == "decodery.methods"
        return [importlib.metadata.EntryPoint(name.replace("_", "-"), value, group) for name, value in points.items()]

    monkeypatch.setattr(importlib.metadata, "entry_points", entry_points)


# What is built in


def test_every_built_in_method_conforms_under_its_name() -> None:
    for name in registry.BUILT_IN:
        cls = registry.find(name)
        assert cls.name == name
        registry.conform(cls)


def test_methods_lists_all_with_everything_json_can_say() -> None:
    entries = {info.name: info for info in decodery.methods()}
    assert set(registry.BUILT_IN) <= set(entries)
    for info in entries.values():
        assert info.title
        assert info.paper
        assert info.summary
        assert "\n" not in info.summary
        again = json.loads(json.dumps(info.as_dict()))
        assert again["name"] == info.name
        assert again["exactness"] == info.exactness.value
        assert [p["name"] for p in again["parameters"]] == [p.name for p in info.parameters]


def test_methods_are_listed_without_torch() -> None:
    code = "import sys, decodery; decodery.methods(); sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_unknown_methods_come_with_near_names() -> None:
    with pytest.raises(UnknownMethod, match="no method 'token-recyling'; did you mean token-recycling"):
        registry.method("token-recyling")


def test_a_method_is_a_name_a_spec_or_an_object() -> None:
    assert registry.method("autoregressive") == Autoregressive()
    assert registry.method("prompt-lookup(length=3)").spec() == "prompt-lookup(length=3)"
    own = Foreign(depth=5)
    assert registry.method(own) is own
    for given in (None, 3, Foreign, ["autoregressive"]):
        with pytest.raises(BadParameter, match="by its name or as a decodery Method"):
            registry.method(given)  # type: ignore[arg-type]


# What others register


def test_a_registered_class_is_found_and_listed() -> None:
    assert decodery.register(Foreign) is Foreign
    assert registry.find("foreign") is Foreign
    assert registry.method("foreign(depth=7)") == Foreign(depth=7)
    assert registry.names()[-1] == "foreign"
    info = next(info for info in decodery.methods() if info.name == "foreign")
    assert info.summary == "A method of another package."
    decodery.register(Foreign)  # again, as when a notebook cell is run twice


@pytest.mark.parametrize("loaded", [False, True])
def test_names_of_built_in_methods_are_taken(loaded: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether or not the built-in class was used before."""
    registry._classes.pop("autoregressive", None)
    if loaded:
        registry.find("autoregressive")

    @dataclass(frozen=True)
    class Usurper(Foreign):
        name: ClassVar[str] = "autoregressive"

    with pytest.raises(ValueError, match="'autoregressive' is taken"):
        decodery.register(Usurper)
    assert registry.find("autoregressive") is Autoregressive


def test_an_entry_point_is_loaded_when_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, foreign=f"{__name__}:Foreign")
    assert "foreign" in registry.names()
    assert "foreign" not in registry._classes
    assert registry.method("foreign(depth=3)") == Foreign(depth=3)
    assert registry.names().count("foreign") == 1


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ("no_such_module_anywhere:Method", "no_such_module_anywhere"),
        (f"{__name__}:Missing", "Missing"),
        (f"{__name__}:install", "no subclass"),
        (f"{__name__}:Misnamed", "calls itself 'other-name'"),
    ],
)
def test_a_broken_plug_in_is_unavailable_and_hides_no_other(
    point: str, message: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch, broken_one=point, foreign=f"{__name__}:Foreign")
    with pytest.raises(MethodUnavailable, match="'broken-one' comes from") as caught:
        registry.find("broken-one")
    assert message in str(caught.value)
    with caplog.at_level(logging.WARNING, "decodery"):
        listed = [info.name for info in decodery.methods()]
    assert "foreign" in listed
    assert "broken-one" not in listed
    assert "broken-one" in caplog.text


def test_a_plug_in_cannot_take_the_place_of_a_built_in_method(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, autoregressive=f"{__name__}:Foreign")
    registry._classes.pop("autoregressive", None)
    assert registry.find("autoregressive") is Autoregressive


# Conformance


def _variant(**changes: Any) -> type[Method]:
    return dataclass(frozen=True)(type("Variant", (Foreign,), {"__annotations__": {}, **changes}))


@pytest.mark.parametrize("attribute", ["name", "title", "paper", "exactness", "family"])
def test_a_method_must_say_what_it_is(attribute: str) -> None:
    with pytest.raises(ValueError, match=f"must set the class attribute {attribute}"):
        registry.conform(_variant(**{attribute: None}))

    class Bare(Method):
        def decode(self, request: Any) -> Decoding:
            yield from ()

    with pytest.raises(ValueError, match="must set the class attribute name"):
        registry.conform(Bare)


def test_other_breaches_of_the_contract() -> None:
    with pytest.raises(ValueError, match="must be an Exactness"):
        registry.conform(_variant(exactness="lossless"))
    with pytest.raises(ValueError, match="no subclass"):
        registry.conform(int)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no subclass"):
        registry.conform(Foreign())  # type: ignore[arg-type]

    @dataclass(frozen=True)
    class NoDecode(Method):
        name: ClassVar[str] = "no-decode"

    with pytest.raises(ValueError, match="must define decode"):
        registry.conform(NoDecode)

    class Undecorated(Foreign):
        extra: int = parameter(3, "forgotten decorator")

    with pytest.raises(ValueError, match="@dataclass"):
        registry.conform(Undecorated)

    @dataclass(frozen=True)
    class NoHelp(Foreign):
        extra: int = parameter(3, "")

    with pytest.raises(ValueError, match="extra of NoHelp needs a help text"):
        registry.conform(NoHelp)

    @dataclass(frozen=True)
    class PlainField(Foreign):
        extra: int = 3

    with pytest.raises(ValueError, match="extra of PlainField needs a help text"):
        registry.conform(PlainField)

    @dataclass(frozen=True)
    class BadDefault(Foreign):
        extra: int = parameter(3, "too high", high=2)

    with pytest.raises(ValueError, match="defaults of BadDefault"):
        registry.conform(BadDefault)

    @dataclass(frozen=True)
    class ListParameter(Foreign):
        extra: list = parameter((), "a list")  # type: ignore[type-arg] # noqa: RUF009

    with pytest.raises(ValueError, match="extra of ListParameter is list"):
        registry.conform(ListParameter)

    with pytest.raises(ValueError, match=r"needs must be of decodery\.engine\.needs, not words"):
        registry.conform(_variant(needs=("a draft model",)))
    with pytest.raises(ValueError, match=r"needs must be of decodery\.engine\.needs, not words"):
        registry.conform(_variant(needs=(NEXT_TOKENS, "a draft model")))
    with pytest.raises(ValueError, match=r"defaults of Variant are not valid: .* depth must"):
        registry.conform(_variant(example="foreign(depth=0)"))

    @dataclass(frozen=True)
    class Depends(Foreign):
        extra: int = parameter(3, "acts beside another", only={"width": 2})

    with pytest.raises(ValueError, match="extra of Depends depends on width, which is no parameter"):
        registry.conform(Depends)

    @dataclass(frozen=True)
    class Settled(Foreign):
        depth: int = field(default=2, metadata={"unused": True})

    registry.conform(Settled)


# Entries


def test_an_entry_says_all_that_a_class_declares() -> None:
    @dataclass(frozen=True)
    class Told(Foreign):
        """Does this
        and that.

        More about it.
        """

        name: ClassVar[str] = "told"
        needs: ClassVar[tuple[Requirement, ...]] = (NEXT_TOKENS, Companion("draft", "a smaller model"))
        refuses: ClassVar[dict[str, str]] = {"target": "it has none"}
        example: ClassVar[str] = "told(mode=slow)"

        mode: str = parameter("fast", "how", choices=("fast", "slow"))
        most: int | None = parameter(None, "how many", low=1, high=9, auto="what pays", only={"mode": "slow"})

    info = registry.MethodInfo.of(Told)
    depth, mode, most = info.as_dict().pop("parameters")
    assert {key: value for key, value in info.as_dict().items() if key != "parameters"} == {
        "name": "told",
        "title": "A foreign method",
        "summary": "Does this and that.",
        "paper": "nobody, 2024",
        "exactness": "approximate",
        "family": "testing",
        "needs": [Companion("draft", "a smaller model").words],
        "refuses": {"target": "it has none"},
        "example": "told(mode=slow)",
    }
    assert (depth["name"], depth["type"], depth["default"], depth["help"], depth["low"]) == (
        "depth", "int", 2, "how deep", 1,
    )  # fmt: skip
    assert (depth["high"], depth["choices"], depth["auto"], depth["only"]) == (None, [], "", "")
    assert (mode["choices"], mode["default"]) == (["fast", "slow"], "fast")
    assert (most["low"], most["high"], most["auto"]) == (1, 9, "what pays")
    assert "mode=slow" in most["only"]
    assert info.extras == (Companion("draft", "a smaller model"),)
    assert registry.MethodInfo.of(Foreign).example == "foreign"


def test_a_method_suits_the_models_whose_scores_it_reads() -> None:
    causal, canvas = (registry.MethodInfo.of(registry.find(name)) for name in ("autoregressive", "masked-diffusion"))
    assert causal.wanted == []
    assert canvas.wanted == [MASKED_POSITIONS.words]
    assert canvas.extras == ()
    assert causal.suits(NEXT_TOKENS.kind)
    assert not causal.suits(MASKED_POSITIONS.kind)
    assert canvas.suits(MASKED_POSITIONS.kind)
    assert not canvas.suits(NEXT_TOKENS.kind)
    assert causal.suits(NEXT_TOKENS.kind | MASKED_POSITIONS.kind)
    both = registry.MethodInfo.of(_variant(needs=(NEXT_TOKENS, MASKED_POSITIONS)))
    assert both.suits(NEXT_TOKENS.kind | MASKED_POSITIONS.kind)
    assert not both.suits(NEXT_TOKENS.kind)


@pytest.mark.parametrize(
    ("spec", "found"),
    [
        ("prompt-lookup", []),
        ("suffix-automaton", []),
        ("suffix-automaton(corpus=here.txt)", ["corpus"]),
        ("cascade(table=auto)", []),
        ("cascade(table=here.npz)", ["table"]),
        ("adablock(sampler=localleap)", []),
        ("sched(calibration=here.json, sampler='localleap')", ["calibration"]),
    ],
)
def test_files_that_a_method_is_given_are_found(spec: str, found: list[str]) -> None:
    assert registry.files_of(registry.method(spec)) == found


def test_files_are_found_in_a_method_within_another() -> None:
    @dataclass(frozen=True)
    class Outer(Foreign):
        name: ClassVar[str] = "outer"

        inner: str | None = parameter(None, "another method", names="method")
        table: str = parameter("", "a file", names="file")

    assert registry.files_of(Outer()) == []
    assert registry.files_of(Outer(inner="suffix-automaton(corpus=here.txt)")) == ["corpus"]
    assert registry.files_of(Outer(inner="suffix-automaton(corpus=a)", table="b")) == ["corpus", "table"]
