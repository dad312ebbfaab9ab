"""Settings of recipes as options: what they take, what they give, and what they refuse."""

import argparse
from dataclasses import dataclass, field

import pytest

from decodery.training import diffusion_lists, masked_diffusion, rainbow_padding
from decodery.training.options import add_options, changed_options, read_options


@dataclass(frozen=True)
class Toy:
    steps: int = 3
    last_rate: float = 0.5
    kind: str = field(default="one", metadata={"choices": ("one", "two")})
    places: tuple[int, ...] = (1, 2)


def parse(settings, *arguments, without=()):
    parser = argparse.ArgumentParser()
    add_options(parser, settings, without)
    return read_options(settings, vars(parser.parse_args(arguments)))


def test_defaults_are_the_settings_own():
    assert parse(Toy()) == Toy()
    assert parse(Toy(steps=7, places=(4,))) == Toy(steps=7, places=(4,))


def test_options_have_the_types_of_the_fields():
    found = parse(Toy(), "--steps", "9", "--last-rate", "2", "--kind", "two", "--places", "5", "6", "7")
    assert found == Toy(9, 2.0, "two", (5, 6, 7))
    assert changed_options(Toy(), found) == ["--steps 9", "--last-rate 2.0", "--kind two", "--places 5 6 7"]
    assert changed_options(Toy(), Toy()) == []


def test_fields_that_are_left_out_stay(capsys):
    assert parse(Toy(steps=8), "--last-rate", "1", without=("steps",)) == Toy(8, 1.0)
    with pytest.raises(SystemExit):
        parse(Toy(), "--steps", "1", without=("steps",))
    assert "--steps" in capsys.readouterr().err


def test_the_command_that_is_told_gives_the_same_settings():
    found = Toy(9, 2.0, "two", (5, 6, 7))
    assert parse(Toy(), *" ".join(changed_options(Toy(), found)).split()) == found


@pytest.mark.parametrize(
    ("main", "arguments"),
    [
        (masked_diffusion.main, ["--data", "x", "--tokenizer", "x"]),
        (diffusion_lists.main, []),
        (rainbow_padding.main, ["--padding", "eos"]),
    ],
)
def test_unknown_masks_are_refused_with_the_known_ones(main, arguments, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        main([*arguments, "--folder", str(tmp_path), "--artifact", str(tmp_path / "model"), "--masks", "all"])
    assert stopped.value.code == 2
    assert "late" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
