"""Settings are checked by name, type and range before work starts; every error is one sentence that names the setting."""

from __future__ import annotations

import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from decodery.engine.settings import Settings, aliases, declared, page, schema
from decodery.errors import BadSetting
from decodery.sampling import DEFAULT_ORDER, LawSettings
from decodery.sampling.chance import Arithmetic, GumbelRace, Keyed, LowDiscrepancy
from decodery.sampling.steps import default_order
from decodery.sampling.structured.constraint import constraint_of
from decodery.sampling.watermarks.keys import GreenKey
from decodery.targets.guidance import Guidance

VOCABULARY = 100
ALIASES = aliases()


def of(**values: Any) -> Settings:
    return Settings.of(values, VOCABULARY)


def keep(ids: Any, scores: Any) -> Any:
    return scores


def label(value: Any) -> str:
    """Names a test by its value; functions without their address, so that it is called alike in every process."""
    return re.sub(r" at 0x\w+", "", str(value))[:30]


GOOD: list[tuple[str, Any, Any]] = [
    ("temperature", 0, 0.0),
    ("temperature", 2.5, 2.5),
    ("top_k", 0, 0),
    ("top_k", 10**6, 10**6),
    ("top_p", 1, 1.0),
    ("top_p", 1e-9, 1e-9),
    ("min_p", 0, 0.0),
    ("min_p", 1.0, 1.0),
    ("repetition_penalty", 0.5, 0.5),
    ("presence_penalty", -2, -2.0),
    ("frequency_penalty", 2.0, 2.0),
    ("logit_bias", {3: 1, "4": -math.inf}, {3: 1.0, 4: -math.inf}),
    ("logit_bias", {}, {}),
    ("min_new_tokens", 0, 0),
    ("processors", keep, (keep,)),
    ("processors", [keep, keep], (keep, keep)),
    ("processors", None, ()),
    ("order", list(DEFAULT_ORDER[::-1]), DEFAULT_ORDER[::-1]),
    ("max_new_tokens", 1, 1),
    ("seed", None, None),
    ("seed", -(2**63), -(2**63)),
    ("seed", 2**64 - 1, 2**64 - 1),
    ("stop", "end", ("end",)),
    ("stop", ["a", "bc"], ("a", "bc")),
    ("stop", None, ()),
    ("stop", [], ()),
    ("stop_token_ids", 7, (7,)),
    ("stop_token_ids", [0, VOCABULARY - 1], (0, VOCABULARY - 1)),
    ("stop_token_ids", torch.tensor([3, 4]), (3, 4)),
    ("stop_token_ids", None, ()),
    ("ignore_eos", True, True),
    ("echo", False, False),
    ("n", 1024, 1024),
    ("logprobs", None, None),
    ("logprobs", 0, 0),
    ("logprobs", 1000, 1000),
    ("stopping_criteria", [keep], (keep,)),
    ("session", "mine", "mine"),
    ("target", None, None),
    ("target", "guidance(scale=2)", Guidance(scale=2.0)),
    ("structured_outputs", None, None),
    ("structured_outputs", {"type": "text"}, None),
    ("structured_outputs", {"regex": "a+"}, constraint_of("structured_outputs", {"regex": "a+"})),
    ("order", "llama.cpp", default_order("llama.cpp")),
    ("order", ["top_k", "temperature"], ("top_k", "temperature")),
    ("typical_p", 0.2, 0.2),
    ("top_n_sigma", 1, 1.0),
    ("top_h", 1, 1.0),
    ("top_h", None, None),
    ("tail_free", 0.9, 0.9),
    ("epsilon_cutoff", 1e-4, 1e-4),
    ("eta_cutoff", 0, 0.0),
    ("xtc_probability", 1, 1.0),
    ("dry_multiplier", 0.8, 0.8),
    ("no_repeat_ngram_size", 3, 3),
    ("bad_words", "word", ("word",)),
    ("bad_words", ["word", [3, "4"]], ("word", (3, 4))),
    ("bad_words", None, ()),
    ("allowed_token_ids", 7, (7,)),
    ("allowed_token_ids", [7, 99], (7, 99)),
    ("allowed_token_ids", None, None),
    ("mirostat", 2, 2),
    ("dynatemp_range", 0.5, 0.5),
    ("momentum_alpha", 0.2, 0.2),
    ("watermark", None, None),
    ("watermark", {"scheme": "kgw", "key": 3, "vocabulary": 100, "bias": 1}, GreenKey(3, 100, bias=1.0)),
    ("watermark", GreenKey(3, 100), GreenKey(3, 100)),
    ("chance", "gumbel", GumbelRace()),
    ("chance", "keyed(key=7, window=0, race=False)", Keyed(7, 0, False)),
    ("chance", Arithmetic(), Arithmetic()),
    ("chance", "qmcpy", LowDiscrepancy()),
    (
        "chance",
        "qmcpy(points=net, randomize=nus, dimensions=3, replications=4, shuffle=True)",
        LowDiscrepancy("net", "nus", 3, 4, True),
    ),
]


@pytest.mark.parametrize(("name", "value", "expected"), GOOD, ids=label)
def test_good_values_arrive(name: str, value: Any, expected: Any) -> None:
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    found = getattr(of(**{name: value}), name)
    assert found == expected
    assert type(found) is type(expected)


NOT_NUMBERS = ["1", None, True, [1], math.nan, math.inf, 10**400, 1j]
NOT_INTEGERS = ["1", True, 1.0, [1], math.nan]
BESIDE: dict[str, dict[str, Any]] = {
    "typical_min_keep": {"typical_p": 0.5},
    "xtc_threshold": {"xtc_probability": 0.5},
    "dry_base": {"dry_multiplier": 1.0},
    "dry_allowed_length": {"dry_multiplier": 1.0},
    "dry_penalty_last_n": {"dry_multiplier": 1.0},
    "dry_sequence_breakers": {"dry_multiplier": 1.0},
    "mirostat_tau": {"mirostat": 2},
    "mirostat_eta": {"mirostat": 2},
    "dynatemp_exponent": {"dynatemp_range": 0.5},
    "momentum_k": {"momentum_alpha": 0.2},
    "momentum_longest": {"momentum_alpha": 0.2},
    "momentum_resistance": {"momentum_alpha": 0.2},
    "momentum_ends_resist": {"momentum_alpha": 0.2},
}
"""Settings that act beside another alone, and that one."""

SECOND: list[tuple[str, Any, Any]] = [
    ("typical_min_keep", 2, 2),
    ("xtc_threshold", 0.5, 0.5),
    ("dry_base", 1, 1.0),
    ("dry_allowed_length", 3, 3),
    ("dry_penalty_last_n", -1, -1),
    ("dry_penalty_last_n", 0, 0),
    ("dry_sequence_breakers", ["\n", [3]], ("\n", (3,))),
    ("dry_sequence_breakers", [], ()),
    ("mirostat_tau", 3, 3.0),
    ("mirostat_eta", 0, 0.0),
    ("dynatemp_exponent", 2, 2.0),
    ("momentum_k", 1, 1),
    ("momentum_longest", 8, 8),
    ("momentum_resistance", [1, 1, 2.5], (1.0, 1.0, 2.5)),
    ("momentum_ends_resist", True, True),
]


@pytest.mark.parametrize(("name", "value", "expected"), SECOND, ids=label)
def test_settings_beside_others_act_there_alone(name: str, value: Any, expected: Any) -> None:
    found = getattr(of(**BESIDE[name], **{name: value}), name)
    assert found == expected
    assert type(found) is type(expected)
    [first] = BESIDE[name]
    with pytest.raises(BadSetting, match=f"{name} acts only together with {first}"):
        of(**{name: value})


def test_an_order_may_leave_out_what_is_off() -> None:
    assert of(order=["temperature", "top_k"], top_k=3, temperature=1.0).order == ("temperature", "top_k")
    with pytest.raises(BadSetting, match="order leaves out top_p, which the settings switch on"):
        of(order=["temperature"], top_p=0.5, temperature=1.0)
    assert of(order=["temperature"], top_p=0.5).order == ("temperature",)  # which greedy decoding does not look at


def test_a_rule_of_greedy_decoding_refuses_a_temperature() -> None:
    assert of(momentum_alpha=0.2).momentum_alpha == 0.2
    with pytest.raises(BadSetting, match=r"momentum_alpha goes with temperature=0 alone: .*no law to draw from"):
        of(momentum_alpha=0.2, temperature=1.0)


MARK: dict[str, Any] = {"scheme": "kgw", "key": 3, "vocabulary": 100}
BAD: dict[str, list[Any]] = {
    "watermark": [
        *(
            "key.json",
            5,
            [MARK],
            {},
            {"scheme": "kgw"},
            {**MARK, "scheme": "mark"},
            {**MARK, "length": 3},
            {**MARK, "key": -1},
        ),
        *(
            {**MARK, "vocabulary": 99},
            {**MARK, "share": 0},
            {**MARK, "share": 1.0},
            {**MARK, "share": 0.001},
            {**MARK, "bias": 0},
        ),
        *({**MARK, "window": 0}, {**MARK, "key": True}, {"scheme": "kgw", "key": 3}, {"scheme": ["kgw"]}),
    ],
    "typical_p": [*NOT_NUMBERS, 0, 1.1],
    "typical_min_keep": [*NOT_INTEGERS, None, 0],
    "top_n_sigma": [*NOT_NUMBERS, -1],
    "top_h": ["1", True, 0, 1.1],
    "tail_free": [*NOT_NUMBERS, 0, 1.1],
    "epsilon_cutoff": [*NOT_NUMBERS, -0.1, 1.1],
    "eta_cutoff": [*NOT_NUMBERS, -0.1, 1.1],
    "xtc_probability": [*NOT_NUMBERS, -0.1, 1.1],
    "xtc_threshold": [*NOT_NUMBERS, -0.1, 0.6],
    "dry_multiplier": [*NOT_NUMBERS, -1],
    "dry_base": [*NOT_NUMBERS, 0.5],
    "dry_allowed_length": [*NOT_INTEGERS, None, 0],
    "dry_penalty_last_n": [*NOT_INTEGERS, None, -2],
    "dry_sequence_breakers": [5, [""], [[]], [[100]], [["a"]], [None]],
    "no_repeat_ngram_size": [*NOT_INTEGERS, None, -1],
    "bad_words": [5, "", [""], [[]], [[100]], [[-1]], [["a"]], [None], [3], {"word": 1}],
    "structured_outputs": [
        5,
        "a+",
        [1],
        {},
        {"regex": "("},
        {"regex": 5},
        {"choice": []},
        {"json": {"type": "odd"}},
        {"no": 1},
    ],
    "allowed_token_ids": [[], "5", [100], [-1], 100, [1.0], [None]],
    "mirostat": [*NOT_INTEGERS, None, -1, 3],
    "mirostat_tau": [*NOT_NUMBERS, -1],
    "mirostat_eta": [*NOT_NUMBERS, -1],
    "dynatemp_range": [*NOT_NUMBERS, -1],
    "dynatemp_exponent": [*NOT_NUMBERS, 0],
    "momentum_alpha": [*NOT_NUMBERS, -1],
    "momentum_k": [*NOT_INTEGERS, None, 0],
    "momentum_longest": [*NOT_INTEGERS, None, 0],
    "momentum_resistance": [5, [], [2, 1], [-1], ["a"], [None]],
    "momentum_ends_resist": [1, "yes", None],
    "temperature": [*NOT_NUMBERS, -0.1],
    "top_k": [*NOT_INTEGERS, None, -1],
    "top_p": [*NOT_NUMBERS, 0, 0.0, -0.5, 1.0001],
    "min_p": [*NOT_NUMBERS, -0.1, 1.1],
    "repetition_penalty": [*NOT_NUMBERS, 0, -1],
    "presence_penalty": [*NOT_NUMBERS, -101, 100.5],
    "frequency_penalty": [*NOT_NUMBERS, -101, 100.5],
    "logit_bias": [
        None,
        [1],
        "1",
        3,
        {100: 1.0},
        {-1: 1.0},
        {"word": 1.0},
        {1.5: 1.0},
        {True: 1.0},
        {None: 1.0},
        {1: "2"},
        {1: math.inf},
        {1: math.nan},
        {1: True},
        {1: None},
        {1: 10**400},
    ],
    "min_new_tokens": [*NOT_INTEGERS, None, -1],
    "processors": [5, "name", [keep, 5], [None]],
    "order": [
        {"temperature": 1},
        5,
        None,
        "temperature",
        [*DEFAULT_ORDER, "temperature"],
        [*DEFAULT_ORDER[1:], "topk"],
        [*DEFAULT_ORDER[1:], []],
    ],
    "max_new_tokens": [*NOT_INTEGERS, None, 0, -5],
    "seed": ["1", True, 1.0, -(2**63) - 1, 2**64],
    "stop": [5, True, "", [""], ["a", ""], ["a", 5], [None], {"a": 1}],
    "stop_token_ids": ["5", "12", [100], [-1], 100, [1.0], [True], [None], ["x"], {"5": 1}, 2.5, [math.inf]],
    "ignore_eos": [1, 0, "true", None],
    "echo": [1, "yes", None],
    "n": [*NOT_INTEGERS, None, 0, 1025],
    "logprobs": ["1", True, 1.0, -1, 1001],
    "stopping_criteria": [5, "name", [5]],
    "session": [5, None, ["a"]],
    "target": [5, "guidanc", "guidance(scale=2"],
    "chance": [
        5,
        None,
        "dice",
        "recording",
        "replay",
        "keyed(key",
        "keyed(keys=3)",
        "keyed(key=-1)",
        "keyed(key=x)",
        "gumbel(a=1)",
        "qmcpy(points=sobol)",
        "qmcpy(points=halton, randomize=shift)",
        "qmcpy(randomize=lms)",
        "qmcpy(dimensions=0)",
        "qmcpy(replications=2.5)",
        "qmcpy(shuffle=1)",
    ],
}


@pytest.mark.parametrize(("name", "value"), [(n, v) for n, values in BAD.items() for v in values], ids=label)
def test_bad_values_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(BadSetting) as caught:
        of(**{name: value})
    message = str(caught.value)
    assert name in message
    assert "\n" not in message
    assert message.endswith((".", "?"))


def test_every_setting_is_tested() -> None:
    names = set(declared())
    assert set(BAD) == names
    assert {name for name, _, _ in [*GOOD, *SECOND]} == names


def test_a_least_length_beyond_the_most_is_refused() -> None:
    assert of(min_new_tokens=5, max_new_tokens=5).min_new_tokens == 5
    for values in ({"min_new_tokens": 6, "max_new_tokens": 5}, {"min_tokens": 200}):
        with pytest.raises(BadSetting, match="max_new_tokens is only"):
            of(**values)


def test_defaults_are_neutral_and_greedy() -> None:
    assert of() == Settings()
    assert Settings().temperature == 0.0
    assert LawSettings().order == DEFAULT_ORDER


# Names


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("temprature", "temperature"),
        ("max_new_token", "max_new_tokens"),
        ("topk", "top_k"),
        ("stop_sequences", "stop_strings"),
        ("log_probs", "logprobs"),
        ("num_return_sequence", "num_return_sequences"),
    ],
)
def test_unknown_names_come_with_near_ones(name: str, hint: str) -> None:
    with pytest.raises(BadSetting, match=f"'{name}' is not a setting.*{hint}"):
        of(**{name: 1})


def test_a_name_like_no_other_lists_all() -> None:
    with pytest.raises(BadSetting, match=r"known: .*max_new_tokens.*temperature"):
        of(zzzzqqqq=1)


ALIAS_VALUES = {
    "stop_strings": ["x"],
    "logits_processor": [keep],
    "bad_words_ids": [[3]],
    "response_format": {"type": "json_object"},
    **dict.fromkeys(("typ_p", "typical", "tfs", "tfs_z"), 0.5),
}


@pytest.mark.parametrize("alias", ALIASES)
def test_aliases_mean_the_setting(alias: str) -> None:
    value, beside = ALIAS_VALUES.get(alias, 3), BESIDE.get(ALIASES[alias], {})
    assert of(**beside, **{alias: value}) == of(**beside, **{ALIASES[alias]: value})
    assert of(**beside, **{alias: value}) != of(**beside)


@pytest.mark.parametrize("alias", ALIASES)
def test_alias_and_name_together_are_refused(alias: str) -> None:
    value = ALIAS_VALUES.get(alias, 3)
    for values in ({alias: value, ALIASES[alias]: value}, {ALIASES[alias]: value, alias: value}):
        with pytest.raises(BadSetting, match="the same setting") as caught:
            of(**values)
        assert alias in str(caught.value)
        assert ALIASES[alias] in str(caught.value)


def test_two_aliases_of_one_setting_are_refused() -> None:
    with pytest.raises(BadSetting, match="the same setting"):
        of(max_tokens=3, max_completion_tokens=3)


# do_sample


@pytest.mark.parametrize(
    ("values", "temperature"),
    [
        ({"do_sample": False}, 0.0),
        ({"do_sample": True}, 1.0),
        ({"do_sample": True, "temperature": 0.6}, 0.6),
        ({"do_sample": False, "temperature": 0.6}, 0.0),
        ({"do_sample": None, "temperature": 0.6}, 0.6),
    ],
)
def test_do_sample_decides_between_greedy_and_sampling(values: dict[str, Any], temperature: float) -> None:
    assert of(**values).temperature == temperature


@pytest.mark.parametrize("values", [{"do_sample": 1}, {"do_sample": "no"}, {"do_sample": True, "temperature": 0}])
def test_do_sample_that_makes_no_sense(values: dict[str, Any]) -> None:
    with pytest.raises(BadSetting, match="do_sample"):
        of(**values)


# Seeds


def test_a_seed_is_kept_or_drawn() -> None:
    assert of(seed=5).with_seed().seed == 5
    drawn = {of().with_seed().seed for _ in range(20)}
    assert None not in drawn
    assert len(drawn) == 20


# What follows from the declarations

PAGE = Path(__file__).parents[2] / "docs" / "settings.md"


def test_the_page_of_settings_is_as_declared() -> None:
    """Where a declaration changed: DECODERY_UPDATE_API=1 pytest tests/engine/test_settings.py."""
    head = PAGE.read_text().split("| setting |")[0]
    expected = head + page()
    if os.environ.get("DECODERY_UPDATE_API"):
        PAGE.write_text(expected)
    assert PAGE.read_text() == expected


def test_the_schema_describes_what_is_accepted() -> None:
    described = schema()
    assert described["additionalProperties"] is False
    for name, value, _ in GOOD:
        if name in described["properties"] and isinstance(value, int | float | str) and not isinstance(value, bool):
            own = described["properties"][name]
            kinds = [own] if "type" in own else own["anyOf"]
            word = "string" if isinstance(value, str) else "integer" if isinstance(value, int) else "number"
            assert any(kind["type"] in (word, "number" if word == "integer" else word) for kind in kinds), name
    assert "stopping_criteria" not in described["properties"]  # functions; those of "processors" have names
    json.dumps(described)


def test_the_command_line_offers_what_the_settings_declare() -> None:
    import dataclasses

    from decodery.cli.options import SettingOptions

    words = {own.option[0].removeprefix("--").replace("-", "_") for own in declared().values() if own.option}
    assert {field.name for field in dataclasses.fields(SettingOptions)} == words  # type: ignore[arg-type]
    group = SettingOptions(temperature=0.0, logit_bias=["3=1.5"], stop=["x"], stop_token_id=[4], order="hf")  # type: ignore[call-arg]
    assert group.given() == {
        "temperature": 0.0, "logit_bias": {3: 1.5}, "stop": ("x",), "stop_token_ids": (4,), "order": "hf",
    }  # fmt: skip
    assert SettingOptions().given() == {}
