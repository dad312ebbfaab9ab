"""Settings of recipes as options: what they take, what they give, and what they refuse."""

import argparse
from dataclasses import dataclass, field

import pytest

from decodery.models.catalogue import ARTIFACTS
from decodery.training import diffusion_lists, masked_diffusion, rainbow_padding
from decodery.training.options import add_options, changed_options, read_options, refusing


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


def test_what_is_raised_on_purpose_is_told_in_one_sentence(tmp_path, capsys):
    folders = ["--folder", str(tmp_path / "work"), "--artifact", str(tmp_path / "model")]
    data = tmp_path / "rows.jsonl"
    tokenizer = str(ARTIFACTS / "diffusion-lists")
    for text, message in (
        (None, "No such file"),
        ("", "holds no rows"),
        ("what", "line 1, is not JSON"),
        ('{"prompt": "copy : A ="}', 'line 1, has neither "text" nor'),
        ('["text"]', 'line 1, has neither "text" nor'),
        ('\n{"prompt": "copy : A =", "answer": "A B"}', "line 2: the answer has 2 tokens and an end, the canvas 2 pos"),
    ):
        if text is not None:
            data.write_text(text)
        with pytest.raises(SystemExit) as stopped:
            masked_diffusion.main(["--data", str(data), "--tokenizer", tokenizer, "--canvas", "2", *folders])
        assert stopped.value.code == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1
    with pytest.raises(SystemExit) as stopped:
        diffusion_lists.main(["--start", str(tmp_path / "none"), *folders])
    assert stopped.value.code == 2
    assert "No such file" in capsys.readouterr().err


def test_faults_keep_their_traceback():
    @refusing
    def main(text):
        int(text)

    with pytest.raises(ValueError, match="invalid literal"):
        main("x")


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
