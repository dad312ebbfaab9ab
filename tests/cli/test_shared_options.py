"""What the verbs share: groups of options, the settings among them, and specs separated by commas."""

from __future__ import annotations

import dataclasses
import inspect
import typing
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import typer
from typer import Option
from typer.testing import CliRunner

from decodery.cli import options
from decodery.cli.console import Bars
from decodery.cli.options import (
    DEFAULT_MODEL,
    ModelOptions,
    SettingOptions,
    check_early,
    named,
    print_remarks,
    specs_of,
    split_specs,
    with_option_groups,
    with_seed,
)
from decodery.engine.settings import declared
from decodery.errors import BadParameter, BadSetting, UnknownMethod


@dataclass(frozen=True)
class Size:
    """A group."""

    width: Annotated[int, Option("--width", help="How wide.")] = 3
    high: Annotated[bool, Option("--high", help="Higher.")] = False


@dataclass(frozen=True)
class Colour:
    """Another one."""

    colour: Annotated[str | None, Option("--colour", help="Which.")] = None


def _app(called: list[Any]) -> typer.Typer:
    app = typer.Typer()

    @app.command()
    @with_option_groups
    def draw(size: Size, name: Annotated[str, Option("--name")] = "x", colour: Colour = Colour()) -> None:
        """Draw something."""
        called.append((size, name, colour))

    return app


class TestGroups:
    @pytest.mark.parametrize(
        ("words", "expected"),
        [
            ([], (Size(), "x", Colour())),
            (["--width", "5", "--high"], (Size(5, True), "x", Colour())),
            (["--colour", "red", "--name", "y", "--width", "1"], (Size(1), "y", Colour("red"))),
        ],
    )
    def test_each_field_is_an_option_and_the_verb_gets_the_group(self, words: list[str], expected: Any) -> None:
        called: list[Any] = []
        assert CliRunner().invoke(_app(called), words).exit_code == 0
        assert called == [expected]

    def test_what_is_no_option_of_a_group_is_refused(self) -> None:
        assert CliRunner().invoke(_app([]), ["--size", "3"]).exit_code == 2

    def test_the_verb_looks_like_one_with_these_options(self) -> None:
        @with_option_groups
        def draw(size: Size, name: str = "x") -> None:
            """Draw something."""

        signature = inspect.signature(draw)
        assert list(signature.parameters) == ["width", "high", "name"]
        assert {parameter.kind for parameter in signature.parameters.values()} == {inspect.Parameter.KEYWORD_ONLY}
        assert [parameter.default for parameter in signature.parameters.values()] == [3, False, "x"]
        assert typing.get_args(draw.__annotations__["width"])[1].help == "How wide."
        assert (draw.__name__, draw.__doc__) == ("draw", "Draw something.")


class TestModel:
    def test_what_is_given_is_what_is_loaded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: list[tuple[str, dict[str, Any]]] = []
        monkeypatch.setattr("decodery.loading.load", lambda name, **given: asked.append((name, given)) or "model")
        group = ModelOptions("other", "float16", "cuda", 3, "off", "q8_0", "2GB", 64)
        assert group.load() == "model"
        assert group.load(dtype="float32") == "model", "what a verb prefers gives way to what was asked for"
        for name, given in asked:
            assert name == "other"
            assert isinstance(given.pop("progress"), Bars)
            assert given == {
                "dtype": "float16",
                "device": "cuda",
                "threads": 3,
                "fast": "off",
                "quantize": "q8_0",
                "kv_budget": "2GB",
                "prefill_chunk": 64,
            }

    @pytest.mark.parametrize(("preferred", "dtype"), [(None, "auto"), ("float32", "float32")])
    def test_auto_is_what_the_verb_prefers(
        self, monkeypatch: pytest.MonkeyPatch, preferred: str | None, dtype: str
    ) -> None:
        asked: list[Any] = []
        monkeypatch.setattr("decodery.loading.load", lambda name, **given: asked.append((name, given["dtype"])))
        ModelOptions().load(dtype=preferred)
        assert asked == [(DEFAULT_MODEL, dtype)]


class TestSettings:
    def test_every_setting_of_the_command_line_is_an_option_of_its_name_and_panel(self) -> None:
        hints = typing.get_type_hints(SettingOptions, include_extras=True)
        panels: dict[str, set[str]] = {}
        for setting in declared().values():
            if not setting.option:
                continue
            kind, option = typing.get_args(hints[setting.option[0].removeprefix("--").replace("-", "_")])
            assert (option.default, *option.param_decls) == setting.option
            assert option.help == setting.help
            assert (kind is bool) is (setting.kind.option is bool)
            panels.setdefault(option.rich_help_panel, set()).add(setting.name)
        assert set(panels) == {"Law of the tokens", "Output"}
        assert {"temperature", "top_p", "seed", "chance", "order"} <= panels["Law of the tokens"]
        assert {"max_new_tokens", "stop", "session", "target"} <= panels["Output"]

    def test_defaults_are_shown_where_they_are_plain(self) -> None:
        hints = typing.get_type_hints(SettingOptions, include_extras=True)
        shown = {name: typing.get_args(hint)[1].show_default for name, hint in hints.items()}
        assert (shown["temperature"], shown["top_k"], shown["session"]) == ("0.0", "0", "default")
        assert shown["ignore_eos"] is False
        assert shown["seed"] is False
        assert shown["stop"] is False

    def test_what_was_given_has_the_names_of_the_settings(self) -> None:
        found = SettingOptions(temperature=0.0, top_k=0, ignore_eos=True, stop=["a", "b"], stop_token_id=[], seed=None)  # type: ignore[call-arg]
        assert found.given() == {"temperature": 0.0, "top_k": 0, "ignore_eos": True, "stop": ("a", "b")}
        assert SettingOptions(ignore_eos=False).given() == {}  # type: ignore[call-arg]

    def test_a_group_cannot_be_changed(self) -> None:
        with pytest.raises(dataclasses.FrozenInstanceError):
            SettingOptions().top_k = 3  # type: ignore[attr-defined]


class TestEarly:
    def test_what_is_wrong_is_found_before_a_model_is_loaded(self) -> None:
        assert check_early("token-recycling(k=3)", {"temperature": 0.5}) == "token-recycling(k=3)"
        assert check_early(None, {}) is None
        for method, settings, error in (
            ("token-recyling", {}, UnknownMethod),
            ("token-recycling(k=0)", {}, BadParameter),
            (None, {"temperature": -1}, BadSetting),
            (None, {"temprature": 1}, BadSetting),
        ):
            with pytest.raises(error):
                check_early(method, settings)

    def test_a_seed_that_was_given_stays(self) -> None:
        given = {"seed": 5, "top_k": 2}
        assert with_seed(given) == given
        fresh = [with_seed({"top_k": 2})["seed"] for _ in range(5)]
        assert len(set(fresh)) == 5
        assert all(0 <= seed < 2**48 for seed in fresh)
        assert with_seed({"top_k": 2})["top_k"] == 2


class TestSpecs:
    @pytest.mark.parametrize(
        ("text", "found"),
        [
            ("a", ["a"]),
            ("a,b", ["a", "b"]),
            (" a , ,b,", ["a", "b"]),
            ("a(x=1,y=2),b", ["a(x=1,y=2)", "b"]),
            ("a(x=(1,2),y=3),b(z=1)", ["a(x=(1,2),y=3)", "b(z=1)"]),
            ("a),b", ["a)", "b"]),
            ("", []),
        ],
    )
    def test_commas_within_brackets_do_not_count(self, text: str, found: list[str]) -> None:
        assert split_specs(text) == found

    def test_they_may_be_given_several_times(self) -> None:
        assert specs_of(["a,b(x=1,y=2)", "c"]) == ["a", "b(x=1,y=2)", "c"]
        assert specs_of(None) == specs_of([]) == []

    def test_names_are_separated_by_commas(self) -> None:
        assert named(" copy, sudoku,,") == ("copy", "sudoku")
        assert named(None) == named("") == ()

    def test_names_of_methods_are_completed(self) -> None:
        found = options._method_names("token-")
        assert "token-recycling" in found
        assert all(name.startswith("token-") for name in found)


def test_remarks_stand_below_an_empty_line(capsys: pytest.CaptureFixture[str]) -> None:
    print_remarks("one [thing]", "another " + "very " * 40 + "long one")
    assert capsys.readouterr().out == "\none [thing]\nanother " + "very " * 40 + "long one\n"
