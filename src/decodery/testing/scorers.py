"""Scorers without a network: what a row scores is a function of the tokens that the row can really see.

The tokens are read off the visible columns of the cache, ordered by position. So a wrong mask, a wrong position, or a cache
that was not rolled back shows up as a wrong score (or as an error), as it would with a network, only louder.
"""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Listing
from itertools import compress

import numpy as np
import torch
from torch import Tensor

from decodery.models.forward import POST_NORM, Attend, Forward, Scores, Slots
from decodery.models.scorer import Head, Scorer
from decodery.models.sequence import Sequence
from decodery.sampling.law import Law, LawSettings
from decodery.testing.marks import LayerMarks

Prefix = tuple[int, ...]
"""The tokens up to and including a row's own, from position 0 on."""
Shares = tuple[tuple[int, float], ...]
"""A mixture: tokens and their weights."""
EMBEDDED = -1.0
"""What marks a row that enters the first layer, where others have the number of layers they have gone through."""
MIXTURE = -2
"""The number of the first mixture, as it stands in a prefix; the others have lower ones."""


def visible_prefixes(
    forward: Forward,
    rows: Listing[int],
    memory: int | None = None,
    causal: bool = True,
    tokens: Listing[int] | None = None,
) -> list[Prefix]:
    """The tokens that each of `rows` sees, by position; with `memory` only the last so many.

    causal: assert, for every row of the forward, that it sees exactly the positions 0, 1, … up to its own, which is what
    a causal model was trained on. tokens: of the rows, where the forward has hidden rows instead.
    """
    sequence = forward.sequence
    cached = sequence.length
    tokens = [int(token) for token in forward.tokens] if tokens is None else list(tokens)
    if forward.attend is Attend.CAUSAL and forward.positions is None and isinstance(forward.slots, Slots) and causal:
        assert sequence.positions == list(range(cached)), f"cached positions have gaps or repeats: {sequence.positions}"
        if memory is None:
            text = [*sequence.tokens, *tokens]
            return [tuple(text[: cached + row + 1]) for row in rows]
        text = [*sequence.tokens[max(cached - memory, 0) :], *tokens]
        offset = len(text) - len(tokens) + 1
        return [tuple(text[max(offset + row - memory, 0) : offset + row]) for row in rows]
    slots, positions = list(forward.written_slots()), list(forward.row_positions())
    columns = list(zip(sequence.positions, sequence.tokens, strict=True))
    columns += [(-1, -1)] * (forward.columns() - cached)
    for slot, position, token in zip(slots, positions, tokens, strict=True):
        columns[slot] = (position, token)
    order = sorted(range(len(columns)), key=columns.__getitem__)
    by_position = [columns[column][0] for column in order]
    by_token = [columns[column][1] for column in order]
    visible = forward.visible().cpu()
    if causal:
        own = visible[range(len(slots)), slots]
        assert bool(own.all()), f"row {int((~own).nonzero()[0])} does not see itself"
    prefixes = []
    for row, (seen, position) in enumerate(zip(visible[:, order].tolist(), positions, strict=True)):
        if causal:
            places = list(compress(by_position, seen))
            assert places == list(range(position + 1)), f"row {row} at position {position} sees the positions {places}"
        prefixes.append(tuple(compress(by_token, seen)))
    if memory is None:
        return [prefixes[row] for row in rows]
    return [prefixes[row][max(len(prefixes[row]) - memory, 0) :] for row in rows]


def _entering(forward: Forward) -> list[int] | None:
    """The tokens and mixtures of a forward of embeddings; None where it is one of token ids."""
    rows = forward.tokens
    if forward.layers.start > 0 or not isinstance(rows, Tensor) or not rows.is_floating_point():
        return None
    assert bool((rows[:, 1] == EMBEDDED).all()), "rows that enter the first layer must come from `embed`"
    return [int(number) for number in rows[:, 0].tolist()]


class PrefixScorer(Scorer):
    """Base of the scorers here. A subclass gives `score`.

    vocabulary: number of token ids. layers: pretended number of layers; a pass through all of them has the scorer's law, a
    pass through some of them may have another (`score` is told). causal: see `visible_prefixes`. memory: how many last
    tokens of a prefix `score` is given (None: all).
    """

    def __init__(
        self,
        vocabulary: int,
        *,
        name: str = "scripted",
        layers: int = 3,
        context: int = 1 << 16,
        causal: bool = True,
        memory: int | None = None,
    ):
        self.vocabulary, self.name, self.layers, self.context = vocabulary, name, layers, context
        self.causal, self.memory = causal, memory

    @abstractmethod
    def score(self, prefixes: Listing[Prefix], whole: bool) -> Tensor:
        """Raw scores [n, vocabulary] float32 of the token after each prefix. whole: through all layers."""

    ways = 64
    """How many ways through the mixtures of a prefix are read, see `embed`."""
    hidden = 2
    """Hidden rows are made up: the number of the row's prefix, and how many layers it has gone through. A row that enters the
    first layer has the number of a token or of a mixture, and EMBEDDED."""

    def embed(self, tokens: Tensor) -> Tensor:
        """As in a network. A mixture that is fed stands in the prefixes for its tokens: what is scored after it is the mean of
        the laws after each of them, so that a mixture of one token is that token. Where there are more than `ways` ways through
        the mixtures of a prefix, the earlier ones stand for their heaviest token alone."""
        if not tokens.is_floating_point():
            return torch.tensor([[float(token), EMBEDDED] for token in tokens.tolist()], dtype=torch.float64)
        rows = []
        for weights in tokens.double():
            shares = tuple((place, float(weights[place])) for place in weights.nonzero()[:, 0].tolist())
            if len(shares) == 1 and shares[0][1] == 1:
                rows.append([float(shares[0][0]), EMBEDDED])
                continue
            known = self._mixtures()
            if shares not in known:
                known.append(shares)
            rows.append([float(MIXTURE - known.index(shares)), EMBEDDED])
        return torch.tensor(rows, dtype=torch.float64)

    def _mixtures(self) -> list[Shares]:
        """All mixtures that were ever embedded."""
        if not hasattr(self, "_mixed"):
            self._mixed: list[Shares] = []
        return self._mixed

    def _read_whole(self, prefix: Prefix) -> list[bool]:
        """Of each entry, whether all tokens of its mixture are read."""
        ways, found = 1, []
        for entry in reversed(prefix):
            ways *= 1 if entry >= 0 else len(self._mixed[MIXTURE - entry])
            found.append(ways <= self.ways)
        return found[::-1]

    def _score(self, prefixes: Listing[Prefix], whole: bool) -> Tensor:
        """As `score`, where prefixes may hold mixtures."""
        if not hasattr(self, "_mixed") or all(min(prefix, default=0) >= 0 for prefix in prefixes):
            return self.score(prefixes, whole)
        rows = []
        for prefix in prefixes:
            paths: list[tuple[Prefix, float]] = [((), 1.0)]
            for entry, whole_mixture in zip(prefix, self._read_whole(prefix), strict=True):
                shares = ((entry, 1.0),) if entry >= 0 else self._mixed[MIXTURE - entry]
                if not whole_mixture:
                    shares = ((max(shares, key=lambda share: share[1])[0], 1.0),)
                paths = [((*path, token), weight * share) for path, weight in paths for token, share in shares]
            scores = self.score([path for path, _ in paths], whole)
            if len(paths) == 1:
                rows.append(scores[0])
            else:
                weights = torch.tensor([weight for _, weight in paths], dtype=torch.float64)[:, None]
                rows.append((scores.double().softmax(dim=-1) * weights).sum(dim=0).log().float())
        return torch.stack(rows)

    def new_sequence(self) -> Sequence:
        return Sequence(self, LayerMarks(self.layers))

    def run_pass(self, forwards: Listing[Forward]) -> list[Scores]:
        wanted: list[Prefix] = []
        sizes = []
        hidden: list[dict[int, Tensor]] = []
        for forward in forwards:
            later = forward.layers.start > 0
            told = self._told(forward) if later else []
            tokens = [prefix[-1] for prefix in told] if later else _entering(forward)
            rows = range(forward.count) if forward.taps or later else forward.logit_rows()
            prefixes = visible_prefixes(forward, rows, self.memory, self.causal, tokens)
            assert not later or prefixes == told, f"hidden rows of {told} are fed where {prefixes} are seen"
            marks = forward.sequence.cache
            if isinstance(marks, LayerMarks):
                marks.check(forward)
            hidden.append({tap: self._rows_of(prefixes, tap) for tap in forward.taps})
            asked = [prefixes[row] for row in forward.logit_rows()] if forward.taps or later else prefixes
            wanted += asked
            sizes.append(len(asked))
        whole = forwards[0].layers.completes(self.layers)
        logits = self._score(wanted, whole) if wanted else torch.empty(0, self.vocabulary)
        for forward in forwards:
            if forward.slots is not Slots.NOWHERE:
                slots, fed = forward.written_slots(), _entering(forward) or list(forward.tokens)
                if forward.layers.start > 0:
                    fed = [prefix[-1] for prefix in self._told(forward)]
                if isinstance(forward.sequence.cache, LayerMarks):
                    forward.sequence.cache.mark(forward)
                forward.sequence.write(slots, fed, forward.row_positions())
        return [Scores(rows, taps) for rows, taps in zip(torch.split(logits, sizes), hidden, strict=True)]

    def head(self, tokens: Tensor | None = None, normed: bool = True) -> Head:
        def head(rows: Tensor) -> Tensor:
            prefixes = [self._numbered()[int(number)] for number in rows[:, 0].tolist()]
            whole = rows[:, 1].long() == self.layers
            logits = torch.empty(len(prefixes), self.vocabulary)
            for complete in (True, False):
                places = (whole == complete).nonzero()[:, 0].tolist()
                if places:
                    logits[places] = self._score([prefixes[place] for place in places], complete)
            return logits if tokens is None else logits[:, tokens]

        return head

    def _numbered(self) -> list[Prefix]:
        """All prefixes that were ever handed out as hidden rows."""
        if not hasattr(self, "_prefixes"):
            self._prefixes: list[Prefix] = []
            self._numbers: dict[Prefix, int] = {}
        return self._prefixes

    def _rows_of(self, prefixes: Listing[Prefix], tap: int) -> Tensor:
        known = self._numbered()
        for prefix in prefixes:
            if prefix not in self._numbers:
                self._numbers[prefix] = len(known)
                known.append(prefix)
        done = self.layers if tap == POST_NORM else tap + 1
        return torch.tensor([[float(self._numbers[prefix]), float(done)] for prefix in prefixes], dtype=torch.float64)

    def _told(self, forward: Forward) -> list[Prefix]:
        """What the hidden rows of a forward are of. They must come out of the layer before its first."""
        rows = torch.as_tensor(forward.tokens)
        assert bool((rows[:, 1] == forward.layers.start).all()), "hidden rows enter another layer than the next"
        return [self._numbered()[int(number)] for number in rows[:, 0].tolist()]


class ScriptedScorer(PrefixScorer):
    """Scores from a Python function of the prefix.

    script: prefix -> [vocabulary] raw scores. early: the same for passes through only some of the layers.
    """

    def __init__(
        self,
        script: Callable[[Prefix], Listing[float] | Tensor],
        vocabulary: int,
        *,
        early: Callable[[Prefix], Listing[float] | Tensor] | None = None,
        name: str = "scripted",
        layers: int = 3,
        context: int = 1 << 16,
        causal: bool = True,
    ):
        super().__init__(vocabulary, name=name, layers=layers, context=context, causal=causal)
        self._script, self._early = script, early or script

    def score(self, prefixes: Listing[Prefix], whole: bool) -> Tensor:
        script = self._script if whole else self._early
        return torch.stack([torch.as_tensor(script(prefix), dtype=torch.float32) for prefix in prefixes])


class TabularScorer(PrefixScorer):
    """An explicit joint law over a small vocabulary, so that the law of any output can be computed.

    order: how many last tokens the law of the next one depends on (None: all). given: prefix -> probabilities, a function
    or a mapping by the last `order` tokens; where it is missing, the law is drawn from a Dirichlet of `concentration`,
    fixed by `seed`. early: the law of passes through only some of the layers; by default a blurred copy.
    """

    def __init__(
        self,
        vocabulary: int = 6,
        *,
        order: int | None = 2,
        seed: int = 0,
        concentration: float = 1.0,
        given: Callable[[Prefix], Listing[float]] | Mapping[Prefix, Listing[float]] | None = None,
        early: TabularScorer | None = None,
        name: str = "tabular",
        layers: int = 3,
        context: int = 1 << 16,
    ):
        super().__init__(vocabulary, name=name, layers=layers, context=context, memory=order)
        self.order, self._seed, self._concentration, self._given = order, seed, concentration, given
        self.early = early
        """The law of passes through only some of the layers; a blurred copy where None."""
        self._places: dict[Prefix, int] = {}
        self._rows: list[Tensor] = []
        self._table = torch.empty(0, vocabulary)

    def law(self, prefix: Listing[int]) -> Tensor:
        """Probabilities [vocabulary] float64 of the token after `prefix`."""
        key = self._key(prefix)
        given = self._given.get(key) if isinstance(self._given, Mapping) else self._given and self._given(key)
        if given is not None:
            law = torch.as_tensor(given, dtype=torch.float64)
            if law.shape != (self.vocabulary,) or bool((law < 0).any()) or not float(law.sum()) > 0:
                raise ValueError(f"the law after {key} must be {self.vocabulary} probabilities, not {given!r}")
            return law / law.sum()
        address = hashlib.blake2b(repr((self._seed, key)).encode(), digest_size=16).digest()
        generator = np.random.Generator(np.random.Philox(key=int.from_bytes(address, "little")))
        return torch.from_numpy(generator.dirichlet([self._concentration] * self.vocabulary))

    def joint(
        self,
        prompt: Listing[int],
        length: int,
        settings: LawSettings | None = None,
        stop_ids: Listing[int] = (),
    ) -> dict[Prefix, float]:
        """The exact law of the next `length` tokens (fewer after one of `stop_ids`) under the processed law.

        Every prefix goes through `sampling.Law`, as in plain decoding; outcomes of probability 0 are left out.
        """
        law = Law(settings or LawSettings(temperature=1.0), prompt, sorted(stop_ids))
        finished: dict[Prefix, float] = {}
        growing: dict[Prefix, float] = {(): 1.0}
        while growing:
            longer: dict[Prefix, float] = {}
            for path, mass in growing.items():
                row = self.score([self._key((*prompt, *path))], True)[0]
                chances = law.log_probabilities(row, path).double().exp()
                chances = chances / chances.sum()
                for token, chance in enumerate(chances.tolist()):
                    if chance > 0:
                        over = len(path) + 1 == length or token in stop_ids
                        (finished if over else longer)[(*path, token)] = mass * chance
            growing = longer
        return finished

    def blurred(self, share: float = 0.5, seed: int = 1, name: str = "tabular draft") -> TabularScorer:
        """A scorer whose law mixes this one's with an unrelated one, which has `share` of the mass: a draft model."""
        other = TabularScorer(self.vocabulary, order=self.order, seed=seed + 7919, concentration=self._concentration)

        def mixed(prefix: Prefix) -> list[float]:
            mixture: list[float] = ((1 - share) * self.law(prefix) + share * other.law(prefix)).tolist()
            return mixture

        return TabularScorer(self.vocabulary, order=self.order, given=mixed, name=name, layers=self.layers)

    def score(self, prefixes: Listing[Prefix], whole: bool) -> Tensor:
        if not whole:
            if self.early is None:
                self.early = self.blurred()
            return self.early.score(prefixes, True)
        places = []
        for prefix in prefixes:
            place = self._places.get(prefix)
            if place is None:
                place = self._places[prefix] = len(self._rows)
                self._rows.append(self.law(prefix).log().float())
            places.append(place)
        if len(self._rows) > self._table.shape[0]:
            self._table = torch.stack(self._rows)
        return self._table[places]

    def _key(self, prefix: Listing[int]) -> Prefix:
        return tuple(prefix) if self.order is None else tuple(prefix[len(prefix) - min(self.order, len(prefix)) :])


def story_scorer(vocabulary: int = 24, seed: int = 0, surprise: float = 1.0, name: str = "story") -> ScriptedScorer:
    """A scorer for tests of methods: mostly predictable from the last token, and yet a function of the whole prefix.

    Drafters are often right and often wrong on it, and nothing but the true prefix gives the true scores. surprise: weight
    of the part that depends on the whole prefix, against 3 for the part that depends on the last token alone.
    """
    cache: dict[object, Tensor] = {}

    def random_row(*key: object) -> Tensor:
        if key not in cache:
            address = hashlib.blake2b(repr((seed, vocabulary, key)).encode(), digest_size=16).digest()
            generator = np.random.Generator(np.random.Philox(key=int.from_bytes(address, "little")))
            cache[key] = torch.from_numpy(generator.standard_normal(vocabulary)).float()
        return cache[key]

    def script(prefix: Prefix) -> Tensor:
        return 3 * random_row("last", prefix[-1]) + surprise * random_row("whole", prefix)

    def early(prefix: Prefix) -> Tensor:
        return 3 * random_row("last", prefix[-1])

    return ScriptedScorer(script, vocabulary, early=early, name=name)
