"""Every parameter of every method does something, or is refused.

For each of them two values are run that differ in nothing else; what is seen (passes of all networks with their rows, events,
drafts, tokens, what the statistics tell) must differ. A parameter without such a pair fails.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from parameter_pairs import PAIRS, Pair
from toy_adapters import toy_adapter

from decodery.diffusion.approximate_joint_sampling.layer import SamplerLayer, TrainedLayer
from decodery.diffusion.sched.margins import Calibration
from decodery.engine.cost import CostCurve
from decodery.engine.events import Finished
from decodery.engine.method import Method
from decodery.engine.parameters import Parameter
from decodery.engine.registry import BUILT_IN, find
from decodery.engine.registry import method as as_method
from decodery.errors import BadParameter, DecoderyError
from decodery.evaluation.byte_languages import PairTokenizer, two_letters
from decodery.models.llama_blocks import Shape
from decodery.models.scorer import Scorer
from decodery.routing.diffadapt.strategies import Policy, Probe, Router
from decodery.speculative.continuations.successors import SuccessorTable
from decodery.speculative.continuations.trigrams import fingerprint
from decodery.speculative.del_.exits import ExitAdapters
from decodery.speculative.private_frequency_estimation.cells import Cells
from decodery.speculative.private_frequency_estimation.mechanism import Frequencies
from decodery.speculative.private_frequency_estimation.table import FrequencyTable
from decodery.speculative.specdec_pp.acceptance import AcceptanceHead, TrainedHead
from decodery.speculative.swift.layer_search import LayerSet
from decodery.testing import (
    InserterScorer,
    LetterTokenizer,
    ScriptedDenoiser,
    SmallLanguageModel,
    confident,
    denoising_language_model,
    inserting_language_model,
    random_script,
    story_scorer,
    toy_any_order_model,
    toy_diffusion_model,
    toy_language_model,
)
from decodery.testing.scorers import TabularScorer

VOCABULARY = 24
PROMPTS = [
    [0, 1, 2, 3, 0, 1, 2],
    [5, 6, 5, 7, 5, 6, 9, 5, 6],
    [12, 20, 4],
    [1, 2, 3, 20, 5, 6, 20, 8, 9, 20, 1, 2, 3, 21, 5, 6, 21, 8, 9],
]
TEXTS: dict[str, list[Any]] = {
    "bytes": ["a", "ab", "aba", "b"],
    "network": ["a short text, a short text"],
    "warm network": ["a short text, a short text"],
    "sets": ["which one? <|start_2d|>a long one<|split_2d|>b<|end_2d|> say which one"],
}
"""Prompts of situations with a network, which reads texts."""
EVERY = [(name, item.name) for name in BUILT_IN for item in find(name).parameters()]


class Priced(SmallLanguageModel):
    """A machine on which a further row costs a tenth of a pass."""

    def cost(self, network: Scorer) -> CostCurve:
        return CostCurve((1, 101), (1.0, 11.0))


class Rotated(LetterTokenizer):
    """Writes other letters for the same numbers."""

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [(token + 1) % VOCABULARY for token in super().encode(text)]

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
        return super().decode([(token - 1) % VOCABULARY for token in token_ids])


def _story(layers: int = 3, surprise: float = 1.0) -> SmallLanguageModel:
    scorers = [story_scorer(VOCABULARY, surprise=surprise), story_scorer(VOCABULARY, surprise=0.5, name="other")]
    for scorer in scorers:
        scorer.layers = layers
    return Priced(scorers[0], LetterTokenizer(VOCABULARY), (), scorers[1])


def _other_tokenizer() -> SmallLanguageModel:
    lm = _story()
    assert lm.drafter is not None
    lm.companions["other"] = SmallLanguageModel(lm.drafter, Rotated(VOCABULARY))
    return lm


def _canvas(shift: bool = False) -> SmallLanguageModel:
    lm = toy_diffusion_model(canvas=12, shift=shift)
    guide = SmallLanguageModel(story_scorer(VOCABULARY, name="guide"), lm.tokenizer)
    lm.companions |= {"stories-twin": guide, "another": SmallLanguageModel(story_scorer(seed=3), lm.tokenizer)}
    return lm


def _ending() -> SmallLanguageModel:
    """Sure of end tokens at the canvas's end, and at one place before."""
    tokens = [3, 4, 5, 0, 6, 7, 8, 1, 0, 0, 0, 0]
    confidences = [0.6, 0.5, 0.7, 0.8, 0.4, 0.5, 0.6, 0.7, 0.9, 0.9, 0.95, 0.97]
    lm = denoising_language_model(
        ScriptedDenoiser(12, 9, lambda canvas: confident(12, 9, confidences, tokens)), stop_ids=(0,)
    )
    lm.companions["stories-twin"] = SmallLanguageModel(story_scorer(10, name="guide"), lm.tokenizer)
    return lm


class Commas(LetterTokenizer):
    """Some tokens contain a comma, and some end with it."""

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
        return "".join(
            f"x,{'y' if t % 4 == 1 else ''}" if t % 2 else super(Commas, self).decode([t]) for t in token_ids
        )


def _growing() -> SmallLanguageModel:
    """Tables of random scores, and as many texts that seem complete as not."""
    return inserting_language_model(InserterScorer(VOCABULARY, random_script(VOCABULARY, 40)), stop_threshold=0.6)


def _words() -> SmallLanguageModel:
    lm = toy_diffusion_model(canvas=12)
    lm.tokenizer = Commas(VOCABULARY)
    return lm


class Marks(LetterTokenizer):
    """Some tokens end a clause."""

    def decode(self, token_ids: Any, skip_special_tokens: bool = False) -> str:
        return "".join("b." if token % 5 == 0 else super(Marks, self).decode([token]) for token in token_ids)


def _clauses() -> SmallLanguageModel:
    lm = _story(surprise=3.0)
    lm.tokenizer = Marks(VOCABULARY)
    return lm


def _bytes() -> SmallLanguageModel:
    """Tokens of byte pairs, a model that gives mass to those which cannot come, and companions of single bytes."""
    tokenizer, single = two_letters(1).tokenizer, PairTokenizer("ab", [])
    lm = SmallLanguageModel(TabularScorer(len(tokenizer)), tokenizer, [tokenizer.eos_token_id])
    for place, name in enumerate(("other", "another")):
        scorer = TabularScorer(len(single), seed=place + 1, name=name)
        lm.companions[name] = SmallLanguageModel(scorer, single, [single.eos_token_id])
    return lm


def _thresholds() -> SmallLanguageModel:
    """Thresholds of it have been learned."""
    lm = _story()
    for kind, value in (("code", 0.1), ("prose", 3.0)):
        lm.memory[None, ("adadec", lm.network.fingerprint(), kind)] = value
    return lm


def _timed() -> SmallLanguageModel:
    """A network with a clock of its own, by which every pass takes a second, whatever layers run."""
    lm, now = toy_language_model(seed=1, layers=4), [0.0]
    run_pass = lm.network.run_pass

    def timed(forwards: Any) -> Any:
        now[0] += 1.0
        return run_pass(forwards)

    lm.network.run_pass = timed  # type: ignore[method-assign]
    curve = CostCurve((1, 64), (1.0, 1.001), lambda: now[0])
    lm.cost = lambda network: curve  # type: ignore[method-assign]
    return lm


GREEDY: dict[str, Any] = {"max_new_tokens": 24, "seed": 2}
SAMPLED: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.0, "seed": 2}
ENDS = {"stop_token_ids": [3, 7, 12, 18]}
SITUATIONS: dict[str, tuple[Callable[[], SmallLanguageModel], dict[str, Any]]] = {
    "text": (_story, GREEDY),
    "thresholds": (_thresholds, GREEDY),
    "sampled": (_story, SAMPLED),
    "ends": (_story, GREEDY | ENDS),
    "drawn ends": (_story, SAMPLED | ENDS),
    "constrained": (_story, SAMPLED | ENDS | {"structured_outputs": {"regex": "(c?[^c-k])*c?"}}),
    "bytes": (_bytes, SAMPLED),
    "one token": (_story, SAMPLED | {"max_new_tokens": 1}),
    "deep": (lambda: _story(layers=7), GREEDY),
    "long": (lambda: _story(layers=7), GREEDY | {"max_new_tokens": 48}),
    "hard": (lambda: _story(7, surprise=6.0), GREEDY),
    "network": (lambda: toy_language_model(seed=1, layers=4), {"max_new_tokens": 6, "seed": 2}),
    "timed network": (_timed, {"max_new_tokens": 48, "seed": 2, "ignore_eos": True}),
    "warm network": (lambda: toy_language_model(seed=1, layers=2), SAMPLED | {"ignore_eos": True}),
    "sets": (lambda: toy_language_model(seed=1, layers=4), {"max_new_tokens": 24, "seed": 2}),
    "other tokenizer": (_other_tokenizer, SAMPLED),
    "canvas": (_canvas, {"seed": 2}),
    "hot canvas": (_canvas, {"temperature": 1.0, "seed": 2}),
    "any order": (lambda: toy_any_order_model(canvas=12), {"temperature": 1.0, "seed": 2}),
    "shifted canvas": (lambda: _canvas(shift=True), {"seed": 2}),
    "ending canvas": (_ending, {"seed": 2}),
    "growing text": (_growing, SAMPLED),
    "words": (_words, {"seed": 2}),
    "clauses": (_clauses, {"max_new_tokens": 24, "temperature": 1.0, "top_p": 0.9, "seed": 2}),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What the specs name in braces."""
    folder: Path = tmp_path_factory.mktemp("files")
    (folder / "corpus.txt").write_text(_story().generate([0, 1, 2], "autoregressive", max_new_tokens=300).text)
    generator = np.random.Generator(np.random.Philox(key=1))
    shares = np.full((400, 4), 0.2, dtype=np.float32)
    SuccessorTable.average(
        generator.integers(0, VOCABULARY, (400, 3)), generator.integers(0, VOCABULARY, (400, 4)), shares, VOCABULARY
    ).save(folder / "table.npz")
    deep = SITUATIONS["deep"][0]().network
    LayerSet(frozenset({1, 2}), frozenset({3})).write(folder / "set.json", 0.9, deep.fingerprint())
    Calibration("toy-diffusion-0", 5.0, 0.5, 3, 0.9, 0.3).write(folder / "calibration.json")
    network = SITUATIONS["network"][0]().network
    random = torch.Generator().manual_seed(0)
    weights = {2: (torch.randn(8, 32, generator=random), torch.randn(32, 8, generator=random))}
    module = SamplerLayer(Shape(VOCABULARY, width=32, layers=2, heads=4, inner=64))
    module.out_norm.weight.data.fill_(2.0)
    TrainedLayer(module, SITUATIONS["canvas"][0]().network.fingerprint(), 3).write(folder / "layer")
    ExitAdapters(weights, torch.arange(0, 260, 2), network.fingerprint(), {}).write(folder / "adapters")
    story = SITUATIONS["text"][0]()
    names = story.network.fingerprint(), story.companion("other").network.fingerprint()
    for place, word in enumerate(("acceptance", "another acceptance")):
        head = AcceptanceHead(2, 0)
        head.out.weight.data, head.out.bias.data = torch.zeros(2, 2), torch.tensor([0.0, 3.0 * place])
        TrainedHead(head, *names, 0, 0.7, 1.0, {}).write(folder / word)
    everything = tuple(range(VOCABULARY))
    cells = Cells(
        VOCABULARY, fingerprint(LetterTokenizer(VOCABULARY), VOCABULARY), everything, (everything,) * VOCABULARY
    )
    estimates = Frequencies(generator.random(cells.size) * 1e-2, 1e-3, 1000)
    FrequencyTable.of(cells, estimates).save(folder / "frequencies.npz")
    assert network.hidden is not None
    probe = Probe(network.hidden, 4)
    with torch.no_grad():
        probe.second.weight.zero_()
        probe.second.bias.copy_(torch.tensor([1.0, 0.0, 0.0]))
    Router(probe, Policy(preamble="a question: "), network.fingerprint()).write(folder / "probe", {})
    changed = toy_adapter(network)
    weights = {name: weight * 2 if "norm" not in name else weight for name, weight in changed.weights.items()}
    dataclasses.replace(changed, weights=weights).write(folder / "kangaroo")
    return {
        "kangaroo": str(folder / "kangaroo"),
        "acceptance": str(folder / "acceptance"),
        "another acceptance": str(folder / "another acceptance"),
        "corpus": str(folder / "corpus.txt"),
        "frequencies": str(folder / "frequencies.npz"),
        "probe": str(folder / "probe"),
        "table": str(folder / "table.npz"),
        "layer_set": str(folder / "set.json"),
        "calibration": str(folder / "calibration.json"),
        "adapters": str(folder / "adapters"),
        "layer": str(folder / "layer"),
    }


def _pair(name: str, parameter: str) -> Pair | None:
    """The pair of the method's own class, or of the nearest base that has one."""
    for cls in find(name).__mro__:
        if parameter in PAIRS.get(cls.__name__, {}):
            return PAIRS[cls.__name__][parameter]
    return None


def _seen(situation: str, spec: str) -> Iterator[object]:
    """All that can be seen of decoding a few prompts with a method, one after the other, or why it is refused."""
    try:
        yield from _decoded(situation, as_method(spec))
    except DecoderyError as refused:
        yield str(refused)


def _decoded(situation: str, method: Method) -> Iterator[object]:
    make, settings = SITUATIONS[situation]
    lm = make()
    passes: list[object] = []
    watched = [lm.network, *(other.network for other in lm.companions.values())]
    for network in [*watched, *([lm.drafter] if lm.drafter is not None else [])]:
        _watch(network, passes)
    if lm.diffusion is not None:
        rounds: list[Any] = [[[3, 1, 4], [1, 5]]]  # canvases are decoded together
    else:
        prompts: list[Any] = TEXTS.get(situation, PROMPTS)
        rounds = [prompt for _ in range(1 if "temperature" in settings else 2) for prompt in prompts]
    for prompt in rounds:
        given = lm.generate(prompt, method, **settings)
        replies = given if isinstance(given, list) else [given]
        events = [[event for event in reply.events if not isinstance(event, Finished)] for reply in replies]
        yield list(passes), events, [reply.stats.details for reply in replies]
        passes.clear()


def _watch(network: Scorer, passes: list[object]) -> None:
    original = network.run_pass

    def spied(forwards: Any) -> Any:
        rows = [
            (torch.as_tensor(f.tokens).tolist(), f.layers, f.written_slots(), f.row_positions(), f.taps, f.logit_rows())
            for f in forwards
        ]
        passes.append((network.name, rows))
        return original(forwards)

    network.run_pass = spied  # type: ignore[method-assign]


def _spec(name: str, item: Parameter, value: object, beside: str, files: dict[str, str]) -> str:
    words = f"'{value}'" if isinstance(value, str) and value != "auto" else str(value)
    inside = ", ".join(part for part in (f"{item.name}={words}", beside) if part)
    for word, path in files.items():
        inside = inside.replace(f"{{{word}}}", path)
    return f"{name}({inside})"


@pytest.mark.parametrize(("name", "parameter"), EVERY)
def test_a_parameter_does_something(name: str, parameter: str, files: dict[str, str]) -> None:
    [item] = [item for item in find(name).parameters() if item.name == parameter]
    if len(item.choices) == 1:  # a subclass has settled it
        with pytest.raises(BadParameter):
            as_method(f"{name}({parameter}=another)")
        return
    pair = _pair(name, parameter)
    assert pair is not None, f"{name} has no pair of values of {parameter} in parameter_pairs.py"
    runs = (_seen(pair.situation, _spec(name, item, value, pair.beside, files)) for value in (pair.one, pair.other))
    for one, other in zip(*runs, strict=False):
        for seen, refused in ((one, False), (other, pair.refused)):
            assert isinstance(seen, str) == refused, f"a pair shows nothing where one of it is refused: {seen}"
        if one != other:
            return
    pytest.fail(f"{name}: {parameter}={pair.one} and {pair.other} are the same beside {pair.beside!r}")


@pytest.mark.parametrize("name", BUILT_IN)
def test_what_cannot_act_is_refused(name: str) -> None:
    """Beside the defaults of all others, or beside the first value that forbids it."""
    cls = find(name)
    items = {item.name: item for item in cls.parameters()}
    for item in items.values():
        value = _another(item)
        if value is None or not item.only or len(item.choices) == 1:
            continue
        for values in ({}, *({key: choice} for one in item.only for key in one for choice in items[key].choices)):
            given = {key: other.default for key, other in items.items()} | values
            if item.acts(given) or any(not items[key].acts(given) for key in values):
                continue
            with pytest.raises(BadParameter) as refused:
                cls(**values, **{item.name: value})
            assert item.condition in str(refused.value)


def _another(item: Parameter) -> object:
    """A value of a parameter that is not its default; None where none is known."""
    if item.choices:
        return next((choice for choice in item.choices if choice != item.default), None)
    if item.type.startswith("bool"):
        return not item.default
    if item.type.startswith("int"):
        return next(v for v in (1, 2) if v != item.default)
    if item.type.startswith("float"):
        return next(v for v in (0.5, 0.25) if v != item.default)
    return None


def test_no_pair_is_left_over() -> None:
    """Each pair stands at a class that has the parameter."""
    line = {cls.__name__: cls for name in BUILT_IN for cls in find(name).__mro__}
    for name, pairs in PAIRS.items():
        known = {field.name for field in dataclasses.fields(line[name])}
        assert set(pairs) <= known, f"{name} has no {set(pairs) - known}"
