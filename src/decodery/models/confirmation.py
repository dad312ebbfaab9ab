"""Whether a way of running a model gives the scores of transformers' own `forward`: found out when the model is loaded.

Nothing is concluded from the names of families or modules. A model is cut down to its first layers, as many as have one of
each kind, with the model's own weights, and with the borders of its configuration (windows, chunks, the original context of
rotary angles) moved to where short texts cross them. Texts then go through the path that is to be confirmed, in all the ways
in which methods ask: whole, in pieces, row by row, as trees, several in one pass, forked, and rolled back. What this gives is
compared with transformers row by row: in float32 it must be the same but for rounding, in shorter types as near to float32 as
transformers' own modules are in that type; of a path that rounds the inputs of products to eight bits, as near as they are when
theirs are rounded, too.

The outcome is kept in `$DECODERY_HOME/confirmed`, by all it can depend on, so that it costs nothing the second time.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from decodery.errors import ModelNotReadable, reason
from decodery.models.cache import home, sources_digest
from decodery.models.forward import Forward, Rows, Slots, Tree
from decodery.models.native.build import chosen_set
from decodery.models.quiet import quiet
from decodery.models.twin import borders, kinds_of_layers, reduced, shared, weights

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from decodery.models.scorer import Scorer
    from decodery.models.sequence import Sequence

SAME = 1e-3
"""Largest root mean square difference of a row's logits in float32, in their standard deviations."""
AS_NEAR = 1.5
"""In shorter types: largest distance from float32, in distances of transformers' own modules."""
LENGTH = 40
"""Tokens of the text that is read; more than any border that was moved."""
FARTHEST = 1024
"""Borders that cannot be moved are crossed up to here."""
FEW_TOKENS = 1024
"""Of larger vocabularies, so many first tokens are looked at."""
FEW_NEURONS = 2048
"""The same of the neurons of a feed-forward. Products of their full size are compared where they are packed."""
FOLLOWING = 8
"""Tokens that transformers generates where angles depend on the length."""


class NotConfirmed(ValueError):
    """A path scores something else than transformers does."""


@dataclass(frozen=True, slots=True)
class Asked:
    """A way of asking, and rows of logits that came of it, by the text whose last token they follow."""

    way: str
    rows: dict[tuple[int, ...], Tensor]


def confirm(
    make: Callable[[Any], Scorer],
    model: PreTrainedModel,
    path: str,
    means: Callable[[Any], Any] | None = None,
) -> None:
    """Raise NotConfirmed, saying where, unless the network that `make` builds over a model scores as transformers does.

    make: is given the model cut down. path: the way of running, part of what the outcome is kept by. means: of a path that
    changes weights on purpose, gives the model with these weights, as which the network must score; it is given the same.
    """
    place = home() / "confirmed" / f"{_identity(model, path)}.json"
    kept = _read(place)
    if kept is None:
        with quiet():
            kept = {"reason": _difference(make, model, means)}
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(json.dumps(kept), encoding="utf-8")
    if kept["reason"]:
        raise NotConfirmed(kept["reason"])


def _read(place: Path) -> dict[str, str] | None:
    try:
        kept: dict[str, str] = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return kept


def _identity(model: PreTrainedModel, path: str) -> str:
    """Of everything the outcome can depend on but the weights: configuration, modules, versions, code, type, device."""
    import transformers

    config = {
        key: value for key, value in model.config.to_dict().items() if key not in ("_name_or_path", "name_or_path")
    }
    told = [
        json.dumps(config, sort_keys=True, default=str),
        f"{type(model).__module__}.{type(model).__qualname__}",
        repr(model),
        transformers.__version__,
        torch.__version__,
        sources_digest().hex(),
        str(model.dtype),
        str(model.device),
        torch.backends.cpu.get_cpu_capability(),
        chosen_set(),
        path,
    ]
    return hashlib.sha256("\n".join(told).encode()).hexdigest()[:24]


def _difference(
    make: Callable[[Any], Scorer], model: PreTrainedModel, means: Callable[[Any], Any] | None = None
) -> str:
    """What a network scores otherwise than transformers; empty where nothing is."""
    failure: Exception | None = None
    for copied in (_cut_down_to_few_tokens, _cut_down, _whole):
        try:
            small, length = copied(model)
        except NotConfirmed:
            raise
        except Exception as error:  # whatever the family's code does with a configuration that it did not expect
            failure = error
            continue
        network = make(small)
        try:
            return _compare(network, make, small if means is None else means(small), length)
        except (NotConfirmed, ModelNotReadable):
            raise
        except Exception as error:  # as above
            failure = error
    assert failure is not None
    raise NotConfirmed(f"it fails where it is tried ({type(failure).__name__}: {reason(failure)})") from failure


def _cut_down_to_few_tokens(model: PreTrainedModel) -> tuple[Any, int]:
    """A model to try a path on, and how long a text has to be to cross all its borders."""
    return _cut_down(model, FEW_TOKENS if model.config.get_text_config().vocab_size > FEW_TOKENS else None)


def _cut_down(model: PreTrainedModel, vocabulary: int | None = None) -> tuple[Any, int]:
    """The same with all tokens."""
    count = int(model.config.get_text_config().num_hidden_layers)
    lists = [part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == count]
    return reduced(model, kinds_of_layers(lists[0]) if lists else count, True, vocabulary), LENGTH


def _whole(model: PreTrainedModel) -> tuple[Any, int]:
    """The same where a model cannot be cut down."""
    far = max(borders(model.config.get_text_config()), default=0)
    if far > FARTHEST:
        raise NotConfirmed(
            f"it computes something else beyond {far} tokens, which cannot be tried on a small copy of it"
        )
    return shared(model, "eager"), max(LENGTH, far + 16)


def _compare(network: Scorer, make: Callable[[Any], Scorer], small: Any, length: int) -> str:
    """small: the model as which the network scores. length: of a text that crosses all its borders."""
    exact = small if small.dtype == torch.float32 else _in_float32(small)
    references: dict[tuple[int, ...], Tensor] = {}
    usual: dict[tuple[int, ...], Tensor] = {}
    asked = _ways(network, length if network.border is None else min(length, network.border - FOLLOWING))
    _score(exact, asked, references)
    if exact is not small:
        with rounded_inputs(small, exact) if network.rounds_inputs else contextlib.nullcontext():
            _score(small, asked, usual)
        if not all(
            bool(row.isfinite().all()) for row in usual.values()
        ):  # it overflows in this type: nothing to compare
            return _compare(make(exact), make, exact, length)
    if network.border is not None:
        asked.append(_beyond(network, exact, references))
    asked.append(_generated(network, exact, references))
    if exact is small:
        for one in asked:
            for text, row in one.rows.items():
                if not _distance(row, references[text]) <= SAME:
                    return (
                        f"{one.way}: row {len(text)} is off by {_distance(row, references[text]):.2g} of its deviation"
                    )
        return ""
    theirs = _together([_distance(row, references[text]) for text, row in usual.items()])
    for one in asked:
        ours = _together([_distance(row, references[text]) for text, row in one.rows.items()])
        if not ours <= AS_NEAR * theirs + SAME:
            return f"{one.way}: {ours:.2g} of a deviation from float32, where transformers is {theirs:.2g} away"
    return ""


@contextlib.contextmanager
def rounded_inputs(model: Any, exact: Any) -> Iterator[None]:
    """Let the products of a model round their inputs to eight bits, as `models.native`'s whole numbers do: 32 neighbours are
    multiples of 1/127 of the largest of them. exact: the same model in float32, whose weights the products take."""

    def product(weights: nn.Linear, given: Tensor) -> Tensor:
        blocks = given.float().unflatten(-1, (-1, 32))
        step = blocks.abs().amax(-1, keepdim=True) / 127
        whole = (blocks / step.clamp(min=1e-30)).round() * step
        return nn.functional.linear(whole.flatten(-2), weights.weight, weights.bias).to(given.dtype)

    products = {name: part for name, part in model.named_modules() if isinstance(part, nn.Linear)}
    for name, part in products.items():
        part.forward = partial(product, exact.get_submodule(name))  # type: ignore[method-assign]
    try:
        yield
    finally:
        for part in products.values():
            del part.forward


def _in_float32(model: Any) -> Any:
    """A copy of a model. No weight is copied before it is converted: the system takes longer to give memory than this takes."""
    held = {id(weight): weight for weight in weights(model).values()}
    converted: dict[int, Any] = {
        key: nn.Parameter(weight.detach().float(), requires_grad=False)
        for key, weight in held.items()
        if isinstance(weight, nn.Parameter)
    }
    return copy.deepcopy(model, converted).float()


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Keep torch to one thread: small operations gain little by several, and wait for all of them where processors are busy."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _generated(network: Scorer, exact: Any, references: dict[tuple[int, ...], Tensor]) -> Asked:
    """A text token by token as transformers generates it, which for some families is not what `forward` gives for the whole."""
    prompt, sequence, rows = _text(network, FOLLOWING, 4), network.new_sequence(), {}
    text = _generate(exact, prompt, references)
    [scores] = network.run([Forward(sequence, prompt, logits=Rows.LAST)])
    rows[tuple(prompt)] = scores.logits[0]
    for token in text[len(prompt) : -1]:
        before = tuple(sequence.tokens)
        [scores] = network.run([Forward(sequence, [token])])
        rows |= _by_text(before, [token], scores.logits)
    return Asked("a text that transformers generates", rows)


def _generate(exact: Any, prompt: list[int], references: dict[tuple[int, ...], Tensor]) -> list[int]:
    """Prompt and answer; the scores that led to each token of it become references."""
    # Of a copy: what angles transformers uses for a length can depend on the lengths that it saw before.
    answer = shared(exact, "eager").generate(
        torch.tensor([prompt], device=exact.device),
        max_new_tokens=FOLLOWING,
        min_new_tokens=FOLLOWING,
        do_sample=False,
        output_logits=True,
        return_dict_in_generate=True,
    )
    text: list[int] = answer.sequences[0].tolist()
    references |= {tuple(text[: len(prompt) + i]): row[0].float() for i, row in enumerate(answer.logits)}
    return text


def _beyond(network: Scorer, exact: Any, references: dict[tuple[int, ...], Tensor]) -> Asked:
    """Texts that grow over the border beyond which angles are others, and one that begins there, as transformers generates
    them: token by token, and several in a pass."""
    assert network.border is not None
    border, rows = network.border, {}
    if border > FARTHEST:
        raise NotConfirmed(f"its rotary angles change at {border} tokens, which cannot be tried on a small copy of it")
    for length in (border - 3, border + 3):
        prompt = _text(network, length, 3)
        text = _generate(exact, prompt, references)
        single, several = network.new_sequence(), network.new_sequence()
        [scores] = network.run([Forward(single, prompt, logits=Rows.LAST)])
        rows[tuple(prompt)] = scores.logits[0]
        network.run([Forward(several, prompt, logits=Rows.NONE)])
        network.run([Forward(several, [1, 2], slots=Slots.NOWHERE)])
        for token in text[length:-3]:
            before = tuple(single.tokens)
            scores = network.run([Forward(network.new_sequence(), prompt[:7]), Forward(single, [token])])[1]
            rows |= _by_text(before, [token], scores.logits)
        before = tuple(single.tokens)
        [scores] = network.run([Forward(single, text[len(before) : -1])])
        rows |= _by_text(before, text[len(before) : -1], scores.logits)
        [scores] = network.run([Forward(several, text[length:-1])])
        for found in _by_text(tuple(prompt), text[length:-1], scores.logits).items():
            rows[found[0]] = torch.where((rows[found[0]] - found[1]).abs() > SAME, torch.inf, rows[found[0]])
    return Asked("texts that grow over the border of their angles", rows)


def _distance(row: Tensor, reference: Tensor) -> float:
    return float((row - reference).square().mean().sqrt() / reference.std().clamp(min=1e-9))


def _together(distances: list[float]) -> float:
    return (sum(distance**2 for distance in distances) / max(len(distances), 1)) ** 0.5


def _text(network: Scorer, length: int, seed: int) -> list[int]:
    return [(7 * i * i + 3 * i + 5 + 11 * seed) % (network.vocabulary - 2) + 1 for i in range(length)]


@torch.inference_mode()
def _score(model: Any, asked: list[Asked], into: dict[tuple[int, ...], Tensor]) -> None:
    """What transformers' forward says of every text, all of one beginning in one pass."""
    missing = sorted({text for one in asked for text in one.rows} - into.keys(), key=len, reverse=True)
    while missing:
        longest = missing[0]
        logits = model(torch.tensor([longest], device=model.device), use_cache=False).logits[0].float()
        rest = []
        for text in missing:
            if longest[: len(text)] == text:
                into[text] = logits[len(text) - 1]
            else:
                rest.append(text)
        missing = rest


def _ways(network: Scorer, length: int) -> list[Asked]:
    """A text through a network in all the ways in which methods ask."""
    whole, other = _text(network, length, 0), _text(network, length // 2 + 3, 1)
    cut, branch = length // 2, _text(network, 3, 2)
    found = []

    def ask(sequence: Sequence, tokens: list[int]) -> dict[tuple[int, ...], Tensor]:
        before = tuple(sequence.tokens)
        [scores] = network.run([Forward(sequence, tokens)])
        return _by_text(before, tokens, scores.logits)

    found.append(Asked("a whole text", ask(network.new_sequence(), whole)))
    sequence = network.new_sequence()
    pieces: dict[tuple[int, ...], Tensor] = {}
    for start, stop in ((0, 5), (5, 6), (6, cut), (cut, length)):
        pieces |= ask(sequence, whole[start:stop])
    found.append(Asked("a text in pieces", pieces))
    sequence = network.new_sequence()
    single: dict[tuple[int, ...], Tensor] = {}
    network.run([Forward(sequence, whole[: cut - 4], logits=Rows.NONE)])
    for token in whole[cut - 4 : cut + 3]:
        single |= ask(sequence, [token])
    found.append(Asked("a text row by row", single))
    twin = sequence.fork()
    forked = ask(twin, branch) | ask(sequence, whole[cut + 3 : cut + 6]) | ask(twin, branch[:1])
    sequence.truncate(cut)
    found.append(Asked("a fork and a text that was rolled back", forked | ask(sequence, whole[cut : cut + 6])))
    first, second = network.new_sequence(), network.new_sequence()
    network.run([Forward(first, whole[:cut], logits=Rows.NONE)])
    scores = network.run([Forward(first, whole[cut:]), Forward(second, other)])
    together = _by_text(tuple(whole[:cut]), whole[cut:], scores[0].logits) | _by_text((), other, scores[1].logits)
    scores = network.run([Forward(first, branch), Forward(second, branch[:1])])
    together |= _by_text(tuple(whole), branch, scores[0].logits) | _by_text(tuple(other), branch[:1], scores[1].logits)
    found.append(Asked("two texts in one pass", together))
    if not network.chains_only:
        found.append(Asked("a draft tree", _tree(network, whole, branch, cut)))
    return found


def _tree(network: Scorer, whole: list[int], branch: list[int], cut: int) -> dict[tuple[int, ...], Tensor]:
    """Two branches behind a text, then on along the second one."""
    start, further = tuple(whole[:cut]), whole[cut : cut + 3]
    sequence = network.new_sequence()
    network.run([Forward(sequence, whole[: cut - 1], logits=Rows.NONE)])
    tokens = [whole[cut - 1], *branch, *further]
    depths = [0, 1, 2, 3, 1, 2, 3]
    [scores] = network.run(
        [Forward(sequence, tokens, [cut - 1 + depth for depth in depths], Tree([-1, 0, 1, -1, 3, 4]))]
    )
    rows = {start: scores.logits[0]}
    for first, path in ((1, branch), (4, further)):
        rows |= {(*start, *path[: i + 1]): scores.logits[first + i] for i in range(3)}
    sequence.keep([cut + 3, cut + 4, cut + 5], cut)
    [scores] = network.run([Forward(sequence, whole[cut + 3 : cut + 5])])
    return rows | _by_text(tuple(whole[: cut + 3]), whole[cut + 3 : cut + 5], scores.logits)


def _by_text(before: tuple[int, ...], tokens: list[int], logits: Tensor) -> dict[tuple[int, ...], Tensor]:
    return {(*before, *tokens[: i + 1]): row for i, row in enumerate(logits)}
