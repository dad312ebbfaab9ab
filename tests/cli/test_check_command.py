"""decodery check: verdicts, exit codes, and what is handed on."""

from __future__ import annotations

import json
from typing import Any

import pytest

from decodery.errors import MethodUnavailable
from decodery.evaluation import check as evaluation
from decodery.evaluation.check import CheckPart, CheckReport


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, dict[str, Any]]]:
    """What `check_method` is asked; it refutes prompt-lookup and cannot run draft-model."""
    asked: list[tuple[str, dict[str, Any]]] = []

    def check_method(lm: Any, method: str, **settings: Any) -> CheckReport:
        settings.pop("on_progress")("greedy", 1, 2)
        asked.append((method, settings))
        if method == "draft-model":
            raise MethodUnavailable("draft-model: no draft model here.")
        holds = method != "prompt-lookup"
        parts = [
            CheckPart("greedy", holds, "20 of 20 outputs identical"),
            CheckPart("law", None, "nothing is promised", {"p": 0.5}),
        ]
        return CheckReport(method, "identical-to-sampling", holds, parts, lm.name)

    monkeypatch.setattr(evaluation, "check_method", check_method)
    return asked


def test_a_promise_that_holds(command: Any, toy: Any, asked: list[Any]) -> None:
    result = command("check", "token-recycling")
    assert (result.code, result.err) == (0, "")
    assert "greedy           holds       20 of 20 outputs identical" in result.out
    assert "no verdict" in result.out
    assert "token-recycling is identical-to-sampling: not refuted." in result.out
    assert asked == [
        (
            "token-recycling",
            {
                "prompts": 20,
                "max_new_tokens": 64,
                "samples": 20_000,
                "significance": 0.001,
                "seed": 0,
                "chance": "addressed",
            },
        )
    ]


def test_a_refuted_promise(command: Any, toy: Any, asked: list[Any]) -> None:
    result = command("check", "prompt-lookup", "token-recycling")
    assert result.code == 1
    assert "prompt-lookup is identical-to-sampling: refuted." in result.out


def test_options_arrive(command: Any, toy: Any, asked: list[Any]) -> None:
    options = ["--prompts", "3", "--samples", "500", "--max-new-tokens", "8", "--significance", "0.01", "--seed", "7"]
    command("check", "token-recycling(k=4)", *options, "--chance", "qmcpy(points=net)")
    settings = {"prompts": 3, "samples": 500, "max_new_tokens": 8, "significance": 0.01, "seed": 7}
    settings |= {"chance": "qmcpy(points=net)"}
    assert asked == [("token-recycling(k=4)", settings)]


def test_all_skips_what_cannot_run(command: Any, toy: Any, asked: list[Any]) -> None:
    from decodery.engine import registry

    result = command("check", "all")
    assert [method.partition("(")[0] for method, _ in asked] == registry.names()
    assert result.code == 1
    assert "draft-model was not checked: draft-model: no draft model here." in result.err


def test_one_that_cannot_run_is_an_error(command: Any, toy: Any, asked: list[Any]) -> None:
    result = command("check", "draft-model")
    assert (result.code, result.out) == (2, "")
    assert result.err == "draft-model: no draft model here.\n"


def test_json(command: Any, toy: Any, asked: list[Any]) -> None:
    value = json.loads(command("check", "token-recycling", "--json").out)
    assert value["passed"] is True
    assert value["parts"][1] == {"name": "law", "passed": None, "detail": "nothing is promised", "p": 0.5}
    several = json.loads(command("check", "token-recycling", "prompt-lookup", "--json").out)
    assert [report["passed"] for report in several] == [True, False]


def test_float32_unless_asked_otherwise(command: Any, toy: Any, asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    dtypes: list[str] = []
    monkeypatch.setattr("decodery.loading.load", lambda name, dtype, **_: dtypes.append(dtype) or toy)
    command("check", "token-recycling")
    command("check", "token-recycling", "--dtype", "bfloat16")
    assert dtypes == ["float32", "bfloat16"]


def test_unknown_method(command: Any, toy: Any) -> None:
    result = command("check", "token-recycling", "prompt-lokup")
    assert result.code == 2
    assert "did you mean prompt-lookup" in result.err
