"""`decodery train`: the list of recipes, their own help, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest

from decodery.training.recipes import RECIPES


def test_list(command: Any) -> None:
    result = command("train")
    assert result.code == 0
    for name, entry in RECIPES.items():
        assert name in result.out
        assert entry.about in result.out


@pytest.mark.parametrize("name", RECIPES)
def test_help_of_a_recipe_has_its_example(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        RECIPES[name].run(["--help"])
    assert stopped.value.code == 0
    assert f"Example: decodery train {name} {RECIPES[name].example}" in capsys.readouterr().out


def test_the_example_holds_what_a_recipe_needs(capsys: pytest.CaptureFixture[str]) -> None:
    """An option that no recipe has is refused, and with the example nothing is missing before it."""
    for name, entry in RECIPES.items():
        with pytest.raises(SystemExit) as stopped:
            entry.run([*entry.example.split(), "--no-such-option"])
        assert stopped.value.code == 2
        assert f"decodery train {name}: error: unrecognized arguments: --no-such-option" in capsys.readouterr().err


def test_unknown_recipe(command: Any) -> None:
    result = command("train", "diffusion-list")
    assert (result.code, result.out) == (2, "")
    assert result.err == "there is no recipe 'diffusion-list'; did you mean diffusion-lists or masked-diffusion?\n"


def test_a_missing_option_is_told(command: Any) -> None:
    with pytest.raises(SystemExit) as stopped:
        RECIPES["stories"].run([])
    assert stopped.value.code == 2
