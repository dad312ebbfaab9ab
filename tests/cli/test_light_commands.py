"""The verbs that need no network: help, methods, models, pull; and that they stay light."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

VERBS = (
    "run",
    "generate",
    "serve",
    "methods",
    "models",
    "pull",
    "race",
    "check",
    "bench",
    "acceptance",
    "train",
    "next-byte",
    "frequencies",
)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["methods"], ["methods", "token-recycling"], ["models"], ["bench", "-h"], ["train"]]
)
def test_no_torch_for_what_does_not_compute(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom decodery.cli.main import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as ended:\n    assert ended.code == 0, ended.code\n"
        "heavy = {'torch', 'transformers', 'numpy', 'scipy'} & set(sys.modules)\nassert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_module_and_version() -> None:
    import decodery

    done = subprocess.run(
        [sys.executable, "-c", "from decodery.cli.main import main; main(['--version'])"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"decodery {decodery.__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_helps_with_an_example(command: Any, verb: str) -> None:
    result = command(verb, "--help")
    assert result.code == 0
    assert f"Example: decodery {verb}" in result.out
    assert "--help" in result.out


def test_without_a_verb_there_is_help(command: Any) -> None:
    result = command()
    assert result.code == 0
    assert all(verb in result.out for verb in VERBS)


def test_unknown_verb(command: Any) -> None:
    result = command("genrate")
    assert (result.code, result.out) == (2, "")
    assert "Did you mean 'generate'?" in result.err
    assert "decodery --help" in result.err


class TestMethods:
    def test_table_has_one_line_per_method_below_its_family(self, command: Any) -> None:
        from decodery.engine import registry

        lines = command("methods").out.splitlines()
        families = list(dict.fromkeys(info.family for info in registry.methods()))
        listed = [line.split()[0] for line in lines if line.startswith("  ")]
        assert [line.strip() for line in lines[1:] if not line.startswith("  ")] == families
        by_family = [i.name for family in families for i in registry.methods() if i.family == family]
        assert listed == by_family
        assert sorted(listed) == sorted(registry.names())
        assert "identical-to-plain" in lines[2]

    @pytest.mark.parametrize("word", ["spec", "SPEC", "SpecTr", "2310.15141"])
    def test_a_word_finds_methods(self, command: Any, word: str) -> None:
        out = command("methods", word).out
        assert "spectr" in out
        assert "localleap" not in out
        assert "spectr" in [entry["name"] for entry in json.loads(command("methods", word, "--json").out)]

    def test_json_is_the_registry(self, command: Any) -> None:
        from decodery.engine import registry

        expected = [info.as_dict() for info in registry.methods()]
        assert json.loads(command("methods", "--json").out) == json.loads(json.dumps(expected))

    def test_page(self, command: Any) -> None:
        from decodery.engine import registry

        for info in registry.methods():
            out = command("methods", info.name).out
            assert info.paper in out
            assert str(info.exactness) in out
            for parameter in info.parameters:
                assert parameter.help in out
            assert f"--method {info.name}" in out or f'--method "{info.name}(' in out

    def test_example_on_each_page_is_a_valid_spec(self) -> None:
        import shlex

        from decodery.cli.methods import _example
        from decodery.engine import registry

        for info in registry.methods():
            registry.method(shlex.split(_example(info))[-1])

    def test_page_as_json(self, command: Any) -> None:
        assert json.loads(command("methods", "prompt-lookup", "--json").out)["name"] == "prompt-lookup"

    def test_unknown(self, command: Any) -> None:
        result = command("methods", "token-reciclin")
        assert (result.code, result.out) == (2, "")
        assert result.err == "there is no method 'token-reciclin'; did you mean token-recycling?\n"


class TestModels:
    def test_list(self, command: Any) -> None:
        from decodery.models import store

        out = command("models").out
        for model in store.known_models():
            assert model.name in out
            assert model.licence in out

    def test_json(self, command: Any) -> None:
        from decodery.models import store

        listed = json.loads(command("models", "--json").out)
        assert [model["name"] for model in listed] == [model.name for model in store.known_models()]
        assert list(listed[0]) == [
            "name", "title", "licence", "source", "parameters", "download_bytes", "installed", "folder", "bytes_on_disk",
        ]  # fmt: skip

    def test_removing_asks_first(self, command: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        from decodery.models import store

        model = store.known_models()[0]
        here = [type(model)(**{**_fields(model), "installed": True, "bytes_on_disk": 5_000_000})]
        removed: list[str] = []
        monkeypatch.setattr(store, "known_models", lambda: here)
        monkeypatch.setattr(store, "remove", lambda name: removed.append(name) or 5_000_000)
        result = command("models", "remove", model.name)
        assert (result.code, removed) == (2, [])
        assert "--yes" in result.err
        command("models", "remove", model.name, stdin="n\n", terminal=True)
        assert removed == []
        command("models", "remove", model.name, stdin="y\n", terminal=True)
        result = command("models", "remove", model.name, "--yes")
        assert removed == [model.name] * 2
        assert result.out == f"removed {model.name}: 5.0 MB freed.\n"

    def test_removing_what_is_not_here(self, command: Any) -> None:
        result = command("models", "remove", "nothing", "--yes")
        assert result.code == 2
        assert "'nothing'" in result.err


def _fields(model: Any) -> dict[str, Any]:
    import dataclasses

    return {field.name: getattr(model, field.name) for field in dataclasses.fields(model)}


class TestPull:
    @pytest.fixture
    def store(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
        """A store that reports two stages and gives a folder of three bytes."""
        from decodery.models import store

        (tmp_path / "weights").write_text("abc")

        def resolve(name: str, *, progress: Any) -> Path:
            progress.start(f"downloading {name}", 10)
            progress.advance(10)
            progress.finish()
            progress.start(f"converting {name}", None)
            progress.finish()
            return tmp_path

        monkeypatch.setattr(store, "resolve", resolve)
        return tmp_path

    def test_says_where_it_is(self, command: Any, store: Path) -> None:
        result = command("pull", "some-model")
        assert result.out == f"some-model is here: {store} (3 bytes)\n"
        assert result.err == "downloading some-model …\nconverting some-model …\n"

    def test_json(self, command: Any, store: Path) -> None:
        value = json.loads(command("pull", "some-model", "--json").out)
        assert value == {"name": "some-model", "folder": str(store), "bytes_on_disk": 3}

    def test_unknown(self, command: Any) -> None:
        result = command("pull", "smollm2-135")
        assert (result.code, result.out) == (2, "")
        assert "did you mean smollm2-135m" in result.err


def test_closed_pipe_is_quiet() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", "from decodery.cli.main import main; main(['methods'])"],
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert done.stderr == ""
    assert done.returncode == 1


def test_no_colour_in_a_pipe(command: Any) -> None:
    assert "\x1b" not in command("methods").out
    assert "\x1b" not in command("methods", "draft-model").out
