"""Parameters of methods: what may be written in a spec, what types and ranges allow, and what the errors say."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decodery.engine.declared import build, parse_spec
from decodery.engine.method import Decoding, Exactness, Method, parameter, refusal
from decodery.engine.parameters import GIVEN, above, unused
from decodery.engine.registry import method as as_method
from decodery.engine.settings import Settings
from decodery.errors import BadParameter


@dataclass(frozen=True)
class Sample(Method):
    """A method with one parameter of each kind."""

    name: ClassVar[str] = "sample"
    title: ClassVar[str] = "Sample"
    paper: ClassVar[str] = "none"
    exactness: ClassVar[Exactness] = Exactness.APPROXIMATE
    family: ClassVar[str] = "testing"

    length: int = parameter(4, "how long", low=1, high=16)
    rate: float = parameter(0.5, "how often", low=0.0, high=1.0)
    eager: bool = parameter(False, "whether at once")
    model: str = parameter("", "which model")
    pick: str = parameter("first", "which one", choices=("first", "last"))
    width: int | None = parameter(None, "how wide", low=1, auto="what fits")
    label: str | None = parameter("its", "a label", auto="its own name")

    def decode(self, request: Any) -> Decoding:
        yield from ()


def built(text: str) -> Sample:
    name, values = parse_spec(text)
    assert name == "sample"
    method = build(Sample, values)
    assert isinstance(method, Sample)
    return method


# Specs


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("sample", {}),
        ("  sample ", {}),
        ("sample()", {}),
        ("sample( )", {}),
        ("sample(length=3)", {"length": 3}),
        ("sample( length = 3 , rate=.25 )", {"length": 3, "rate": 0.25}),
        ("sample(length=3,)", {"length": 3}),
        ("sample(rate=-1e-3)", {"rate": -0.001}),
        ("sample(eager=true)", {"eager": True}),
        ("sample(eager=False)", {"eager": False}),
        ("sample(width=None)", {"width": None}),
        ("sample(width=auto)", {"width": "auto"}),
        ("sample(model=smollm2-135m)", {"model": "smollm2-135m"}),
        ("sample(model=owner/Name-1.5B)", {"model": "owner/Name-1.5B"}),
        ("sample(model=./folder/file.gguf)", {"model": "./folder/file.gguf"}),
        ("sample(model=/home/me/v2)", {"model": "/home/me/v2"}),
        ("sample(model=~/v2)", {"model": "~/v2"}),
        ("sample(model='a, b (c)=d')", {"model": "a, b (c)=d"}),
        ('sample(model="it\'s", length=2)', {"model": "it's", "length": 2}),
        ("sample(model='')", {"model": ""}),
        ("sample(model='3')", {"model": "3"}),
        ("sample(model=3)", {"model": 3}),
    ],
)
def test_specs_that_can_be_read(text: str, values: dict[str, Any]) -> None:
    name, found = parse_spec(text)
    assert name == "sample"
    assert found == values
    assert [type(value) for value in found.values()] == [type(value) for value in values.values()]


@pytest.mark.parametrize(
    "text",
    [
        "sample(",
        "sample(length=3",
        "sample(length=3))",
        "sample(3)",
        "sample(length)",
        "sample(length=)",
        "sample(=3)",
        "sample(length=3)(rate=1)",
        "sample(length=3) + 1",
        "sample(**values)",
        "sample(length=3,,rate=1)",
        "sample(length=3 rate=1)",
        "sample(le ngth=3)",
        "sample(model='open)",
        "sample(model=a b)",
        "sample(model=f(x))",
        "sample(model=[x])",
        "sample(length=3, length=4)",
        "sample(length=\0)",
    ],
)
def test_specs_that_cannot_be_read(text: str) -> None:
    with pytest.raises(BadParameter):
        built(text)


@given(
    st.builds(
        dict,
        length=st.integers(1, 16),
        rate=st.floats(0, 1),
        eager=st.booleans(),
        model=st.text()
        | st.sampled_from(["true", "None", "auto", "12", "owner/name", "smollm2-135m", "a,b", "'", '"', "\\"]),
        pick=st.sampled_from(["first", "last"]),
        width=st.none() | st.integers(1, 99),
        label=st.none() | st.text(min_size=1) | st.sampled_from(["auto", "None"]),
    )
)
def test_a_spec_is_read_back_as_the_same_method(values: dict[str, Any]) -> None:
    method = build(Sample, values)
    assert built(method.spec()) == method


def test_a_spec_names_what_differs_from_the_defaults() -> None:
    assert Sample().spec() == "sample"
    assert Sample(length=4).spec() == "sample"
    assert Sample(length=5, width=3, eager=True).spec() == "sample(length=5, eager=True, width=3)"
    assert Sample(label=None).spec() == "sample(label=None)"
    assert Sample(label="None", model="3").spec() == "sample(model='3', label='None')"
    assert Sample(model="smollm2-135m").spec() == "sample(model=smollm2-135m)"


# Types and ranges


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("length", 1, 1),
        ("length", 16, 16),
        ("rate", 1, 1.0),
        ("rate", 0.0, 0.0),
        ("eager", True, True),
        ("model", "x", "x"),
        ("pick", "last", "last"),
        ("width", None, None),
        ("width", "auto", None),
        ("width", 10**6, 10**6),
        ("label", None, None),
        ("label", "None", "None"),
        ("label", "auto", "auto"),
    ],
)
def test_values_within_their_range(name: str, value: Any, expected: Any) -> None:
    found = getattr(build(Sample, {name: value}), name)
    assert found == expected
    assert type(found) is type(expected)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("length", 0, "1..16"),
        ("length", 17, "1..16"),
        ("length", 2.0, "must be int"),
        ("length", True, "must be int"),
        ("length", "3", "must be int"),
        ("length", None, "must be int"),
        ("length", "auto", "must be int"),
        ("rate", 1.5, "0..1"),
        ("rate", -0.1, "0..1"),
        ("rate", float("nan"), "0..1"),
        ("rate", float("inf"), "0..1"),
        ("rate", True, "must be float"),
        ("rate", "half", "must be float"),
        ("eager", 1, "must be bool"),
        ("eager", "yes", "must be bool"),
        ("model", 3, "must be str"),
        ("model", None, "must be str"),
        ("pick", "middle", "one of first, last"),
        ("width", 0, "1.."),
        ("width", 1.5, "must be int or auto"),
        ("label", 3, "must be str or auto"),
    ],
)
def test_values_out_of_their_range(name: str, value: Any, message: str) -> None:
    with pytest.raises(BadParameter) as caught:
        build(Sample, {name: value})
    assert f"sample: {name} must" in str(caught.value)
    assert message in str(caught.value)


def test_unknown_parameters_come_with_near_ones() -> None:
    with pytest.raises(BadParameter, match="sample has no parameter 'lenght'; did you mean length"):
        build(Sample, {"lenght": 3})
    with pytest.raises(BadParameter, match=r"no parameter 'qqqqqq'; known: eager, label, length"):
        build(Sample, {"qqqqqq": 3})
    with pytest.raises(BadParameter, match="autoregressive has no parameter 'length'; it has none"):
        as_method("autoregressive(length=3)")


def test_methods_are_compared_by_value_and_cannot_be_changed() -> None:
    assert Sample(length=5) == Sample(length=5) != Sample()
    with pytest.raises(AttributeError):
        Sample().length = 3  # type: ignore[misc]


def test_the_list_of_parameters_says_everything() -> None:
    found = {item.name: item for item in Sample.parameters()}
    assert list(found) == ["length", "rate", "eager", "model", "pick", "width", "label"]
    assert (found["length"].type, found["length"].default, found["length"].range) == ("int", 4, "1..16")
    assert (found["width"].type, found["width"].range, found["width"].auto) == ("int | auto", "1..", "what fits")
    assert found["pick"].range == "first | last"
    assert found["eager"].range == ""


# Refusals


def test_a_method_refuses_settings_it_cannot_honour() -> None:
    @dataclass(frozen=True)
    class Choosy(Sample):
        name: ClassVar[str] = "choosy"
        refuses: ClassVar[dict[str, str]] = {
            "temperature": "it is greedy.",
            "logit_bias": "it has no scores.",
            "logprobs": "it has none.",
            "stop": "it cannot stop.",
        }

    method = Choosy()
    assert refusal(method, Settings(top_k=3, session="other")) is None
    assert refusal(method, Settings(temperature=0.0, logit_bias={}, logprobs=None, stop=())) is None
    assert refusal(method, Settings(temperature=0.7)) == "choosy does not run with temperature: it is greedy."
    assert refusal(method, Settings(logit_bias={1: 1.0})) is not None
    assert refusal(method, Settings(logprobs=0)) is not None
    assert refusal(method, Settings(stop=("x",))) is not None


def test_which_guarantees_are_lossless() -> None:
    assert [e.value for e in Exactness if e.lossless] == [
        "identical-to-plain",
        "identical-to-sampling",
        "greedy-identical",
    ]
    assert [e.value for e in Exactness if e.same_law] == ["identical-to-plain", "identical-to-sampling"]
    assert [e.value for e in Exactness if e.same_tokens] == ["identical-to-plain"]


# What depends on other parameters


@dataclass(frozen=True)
class Dependent(Sample):
    """Parameters that act beside others only."""

    name: ClassVar[str] = "dependent"

    every: int = parameter(1, "how often", low=1, only={"pick": "last", "eager": True})
    depth: int = parameter(1, "how deep", low=1, only=({"every": above(1)}, {"model": GIVEN}))

    def check(self) -> None:
        if self.length == 13:
            raise BadParameter("dependent: 13 brings no luck.")


def test_a_value_that_does_nothing_is_refused_with_what_it_needs() -> None:
    assert Dependent(pick="last", eager=True, every=3, depth=2).depth == 2
    assert Dependent(model="x", depth=2).depth == 2
    assert Dependent(every=1, depth=1) == Dependent()
    with pytest.raises(BadParameter) as refused:
        Dependent(every=3, pick="last")
    assert str(refused.value) == (
        "dependent: every=3 does something only with pick=last and with eager=True, and here it is eager=False."
    )
    with pytest.raises(
        BadParameter, match=r"depth=2 does something only where every is above 1, or where model is given"
    ):
        Dependent(depth=2)


def test_a_variant_leaves_out_what_does_nothing_in_it() -> None:
    method = Dependent(pick="last", eager=True, every=3, depth=2, rate=0.25)
    assert method.varied(pick="first") == Dependent(eager=True, rate=0.25)
    assert method.varied(length=5).every == 3


def test_no_subclass_loses_the_check() -> None:
    @dataclass(frozen=True)
    class Forgetful(Dependent):
        def check(self) -> None:
            """Asks no base; that is the base's own affair."""

    for wrong in ({"length": 17}, {"length": "long"}, {"every": 3}, {"length": 13}):
        with pytest.raises(BadParameter):
            Forgetful(**wrong)
    with pytest.raises(TypeError, match=r"in check\(\), not in __post_init__"):

        class Hasty(Dependent):
            def __post_init__(self) -> None:
                pass


def test_what_a_subclass_has_no_use_for_is_none_of_its_parameters() -> None:
    @dataclass(frozen=True)
    class Settled(Dependent):
        name: ClassVar[str] = "settled"
        pick: str = parameter("first", "which one", choices=("first",))
        width: int | None = unused(None)

    assert [item.name for item in Settled.parameters()] == [
        "length",
        "rate",
        "eager",
        "model",
        "pick",
        "label",
        "depth",
    ]
    with pytest.raises(BadParameter, match="settled has no parameter 'width'"):
        Settled(width=2)
    with pytest.raises(BadParameter, match="settled has no parameter 'every'"):
        Settled(every=2)
