"""Answers as they stand in texts: letters, numbers and expressions, and which of several counts."""

from __future__ import annotations

import pytest

from decodery.search.answers import last_boxed, normalise, parse


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A and B", "B"),
        ("The answer is A, not B", "A"),
        ("Answer: (C) or D", "C"),
        ("B is the answer.", "B"),
        ("The answer is \\boxed{C}, and A or B are not", "C"),
        ("\\boxed{A or B}", "B"),
        ("The ANSWER=D", "D"),
        ("USA", None),
        ("a b", None),
    ],
)
def test_the_letter_of_an_option(text: str, letter: str | None) -> None:
    """Behind "answer" the first one, as reasons may follow; elsewhere the last one."""
    assert parse(text, "letter") == letter


@pytest.mark.parametrize(
    ("expression", "form"),
    [
        ("3/6", "1/2"), ("1.5/2", "3/4"), ("1.5/0", "1.5/0"), ("3/0", "3/0"), ("1,000.50", "2001/2"), ("12,345", "12345"),
        ("-0.25", "-1/4"), ("5 \\%", "5"), ("7 km h", "7"), ("x + 1", "x+1"), ("\\frac{a}{b}", "a/b"),
        ("\\frac{a+1}{b}", "(a+1)/(b)"), ("\\frac{a}{b+1}", "(a)/(b+1)"), ("\\frac3{4}", "3/4"), ("$2$", "2"), ("4.", "4"),
        ("\\text{red}", "red"), ("2\\,000", "2000"), ("", ""),
    ],
)  # fmt: skip
def test_one_form_of_an_expression(expression: str, form: str) -> None:
    assert normalise(expression) == form


def test_the_last_number_of_a_text() -> None:
    for text, number in (("3, then 4", "4"), ("\\frac12 of 3/4", "3/4"), ("a 12,345 b", "12345"), ("v1.5.", "3/2")):
        assert parse(text, "math") == number
    assert parse("option 007 of 9 or 010", "index") == "10"


def test_braces_within_a_box_come_in_pairs() -> None:
    assert last_boxed("\\boxed{a{b}{c}d} e}") == "a{b}{c}d"
    assert last_boxed("\\boxed {1} \\fboxed{2}") == "2"
    assert last_boxed("\\boxed{1} \\boxed{2") == "1"
    assert last_boxed("\\boxed{}") == ""
    assert last_boxed("boxed{1}") is None
