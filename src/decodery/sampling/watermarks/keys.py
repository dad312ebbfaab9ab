"""Keys of watermarks: what writer and detector must have in common, as an object and as a file of JSON.

Two schemes have a sequence of numbers and begin each text somewhere in it (Kuditipudi, Thickstun, Hashimoto and Liang, Robust
distortion-free watermarks for language models, TMLR 2024, arXiv 2307.15593). The others go by the last tokens: Gumbel noise
(Aaronson 2022), green lists (Kirchenbauer et al., A watermark for large language models, 2023, arXiv 2301.10226), tournaments
(Dathathri et al., Scalable watermarking for identifying large language model outputs, Nature 634, 2024).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from decodery._lazy import np
from decodery.errors import BadInput, BadSetting, near
from decodery.sampling.settings import ANY_VOCABULARY, Real, ValueKind, Whole
from decodery.sampling.watermarks.numbers import seed_of, unit, words

if TYPE_CHECKING:
    from jaxtyping import Bool, Float64, Int64, UInt64

FIELDS: Mapping[str, ValueKind] = {
    "key": Whole(0, 2**63 - 1),
    "vocabulary": Whole(2, 2**31),
    "length": Whole(2, 2**16),
    "window": Whole(1, 64),
    "share": Real(0.0, 1.0, open_low=True),
    "bias": Real(0.0, open_low=True),
    "layers": Whole(1, 64),
}
"""What the fields of a key may be."""


@dataclass(frozen=True, repr=False)
class WatermarkKey:
    """Base of all keys. key: the secret number. vocabulary: how many tokens the model scores, rows of padding included; writer
    and detector must count the same.

    Raises BadSetting where a field cannot be so.
    """

    key: int
    vocabulary: int

    scheme: ClassVar[str]
    summary: ClassVar[str]
    """One sentence."""
    drawn: ClassVar[bool] = False
    """Whether the mark is in the draws; otherwise it is a step of the law."""
    greedy: ClassVar[str] = ""
    """Why greedy decoding cannot carry it; empty: it can."""

    def __post_init__(self) -> None:
        for own in dataclasses.fields(self):
            value = FIELDS[own.name].check(f"watermark: {own.name}", getattr(self, own.name), ANY_VOCABULARY)
            object.__setattr__(self, own.name, value)

    def __repr__(self) -> str:  # the secret stays out of messages and logs
        rest = [f"{own.name}={getattr(self, own.name)}" for own in dataclasses.fields(self) if own.name != "key"]
        return f"{type(self).__name__}(key=…, {', '.join(rest)})"

    @property
    def longest(self) -> int | None:
        """Most tokens of a text that can carry it; None: any number."""
        return None

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it; holds the secret."""
        return {"scheme": self.scheme, **dataclasses.asdict(self)}

    def write(self, path: Path) -> None:
        """Write a file that only its owner may read. Raises BadInput where it exists already, or cannot be written."""
        try:
            path.touch(0o600, exist_ok=False)
            path.write_text(json.dumps(self.as_dict(), indent=1) + "\n", "utf-8")
        except FileExistsError:
            raise BadInput(f"{path} exists already; a key that is overwritten is lost.") from None
        except OSError as error:
            raise BadInput(f"{path} cannot be written: {error.strerror}.") from None


@dataclass(frozen=True, repr=False)
class SequenceKey(WatermarkKey):
    """A key of `length` entries, spent one a token from a random entry on, and round about. No text may be longer."""

    length: int = 256

    drawn = True
    greedy = "greedy text is the same under every key, so nobody could find the mark in it"

    @property
    def longest(self) -> int:
        return self.length


@dataclass(frozen=True, repr=False)
class ExponentialKey(SequenceKey):
    """Exponential minimum sampling (section 2.3.2): entry j has a uniform number for every token, and the token with the least
    -log(number) / probability is taken."""

    scheme = "exp"
    summary = "A sequence of rows of numbers, one a token: exponential minimum sampling; the strongest."

    def row(self, place: int) -> Float64[np.ndarray, "vocabulary"]:
        """The numbers in [0, 1) of an entry, by token."""
        return unit(words(_seed(self, place), np.arange(self.vocabulary, dtype=np.uint64)))

    def columns(self, tokens: Sequence[int] | Int64[np.ndarray, "u"]) -> Float64[np.ndarray, "u length"]:
        """The numbers that these tokens have in all entries."""
        places = np.asarray(tokens, dtype=np.uint64)
        return unit(words(_entry_seeds(self)[None, :], places[:, None]))


@dataclass(frozen=True, repr=False)
class InverseKey(SequenceKey):
    """Inverse transform sampling (section 2.3.1): one order of all tokens, and of entry j one uniform number, at which the law
    that is cumulated in this order is read."""

    scheme = "its"
    summary = "An order of the tokens and a sequence of numbers: inverse transform sampling; the shortest key."

    def order(self) -> Int64[np.ndarray, "vocabulary"]:
        """The tokens in their secret order."""
        return _order(self)

    def ranks(self) -> Int64[np.ndarray, "vocabulary"]:
        """The place of every token in that order, from 0."""
        return _ranks(self)

    def number(self, place: int) -> float:
        """The number in [0, 1) of an entry."""
        return float(unit(words(_seed(self, place), np.zeros(1, np.uint64)))[0])

    def numbers(self) -> Float64[np.ndarray, "length"]:
        """Those of all entries."""
        return unit(words(_entry_seeds(self), np.zeros(1, np.uint64)))


@dataclass(frozen=True, repr=False)
class ContextKey(WatermarkKey):
    """Gumbel noise that follows from the last `window` tokens: the source of chance `keyed`. A context that comes again
    meets the same noise, so single draws have the model's law and whole texts have not quite."""

    window: int = 4

    scheme = "gumbel"
    summary = "A Gumbel race whose noise follows from the last tokens."
    drawn = True
    greedy = SequenceKey.greedy


@dataclass(frozen=True, repr=False)
class GreenKey(WatermarkKey):
    """Green lists: after the last `window` tokens a random `share` of all tokens gains `bias`. Changes the law."""

    window: int = 1
    share: float = 0.25
    bias: float = 2.0

    scheme = "kgw"
    summary = "Scores of a share of the tokens, chosen by the last ones, are raised; changes the law."

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.greens < self.vocabulary:
            raise BadSetting(
                f"watermark: a share of {self.share:g} of {self.vocabulary} tokens is none of them, or all; give another share."
            )

    @property
    def greens(self) -> int:
        """How many tokens are green."""
        return int(self.share * self.vocabulary)

    def green(self, context: Sequence[int]) -> Bool[np.ndarray, "vocabulary"]:
        """Which tokens are green after these last `window` tokens, or fewer where the text begins. Not to be changed."""
        return _green(self, tuple(context))


@dataclass(frozen=True, repr=False)
class TournamentKey(WatermarkKey):
    """Tournament sampling of two candidates in each of `layers` rounds, non-distortionary (SynthID-Text). In each round every
    token has a bit that follows from the last `window` tokens. Where these have stood before in the output, the law is left
    alone."""

    window: int = 4
    layers: int = 30

    scheme = "synthid"
    summary = (
        "Tournaments among tokens by bits that follow from the last ones; averaged over keys each draw keeps its law."
    )
    greedy = "a law of one token leaves a tournament nothing to choose, so nobody could find the mark"

    def bits(self, context: Sequence[int]) -> UInt64[np.ndarray, "vocabulary"]:
        """Of every token 64 bits, of which layer l takes number l."""
        seeds = np.array([seed_of(self.key, self.scheme, *context)], np.uint64)
        return words(seeds, np.arange(self.vocabulary, dtype=np.uint64))


SCHEMES: dict[str, type[WatermarkKey]] = {
    own.scheme: own for own in (ExponentialKey, InverseKey, ContextKey, GreenKey, TournamentKey)
}


def _seed(key: SequenceKey, entry: int) -> UInt64[np.ndarray, "1"]:
    return np.array([seed_of(key.key, key.scheme, entry)], np.uint64)


@functools.lru_cache(maxsize=8)
def _entry_seeds(key: SequenceKey) -> UInt64[np.ndarray, "length"]:
    return np.concatenate([_seed(key, entry) for entry in range(key.length)])


@functools.lru_cache(maxsize=8)
def _order(key: InverseKey) -> Int64[np.ndarray, "vocabulary"]:
    # Outputs of one generator are all different, so there are no ties.
    seeds = np.array([seed_of(key.key, key.scheme, "order")], np.uint64)
    return words(seeds, np.arange(key.vocabulary, dtype=np.uint64)).argsort()


@functools.lru_cache(maxsize=8)
def _ranks(key: InverseKey) -> Int64[np.ndarray, "vocabulary"]:
    ranks = np.empty(key.vocabulary, np.int64)
    ranks[_order(key)] = np.arange(key.vocabulary)
    return ranks


@functools.lru_cache(maxsize=256)
def _green(key: GreenKey, context: tuple[int, ...]) -> Bool[np.ndarray, "vocabulary"]:
    seeds = np.array([seed_of(key.key, key.scheme, *context)], np.uint64)
    found = np.zeros(key.vocabulary, np.bool_)
    found[words(seeds, np.arange(key.vocabulary, dtype=np.uint64)).argpartition(key.greens)[: key.greens]] = True
    return found


# As users give them


def key_of(value: Any) -> WatermarkKey:
    """A key from what JSON has. Raises BadSetting."""
    if isinstance(value, WatermarkKey):
        return value
    if not isinstance(value, Mapping):
        raise BadSetting(f"watermark must be a key, as an object with scheme, key and vocabulary, not {_shown(value)}.")
    scheme = value.get("scheme")
    if not isinstance(scheme, str) or scheme not in SCHEMES:
        raise BadSetting(f"watermark: there is no scheme {_shown(scheme)}; known: {', '.join(SCHEMES)}.")
    made = SCHEMES[scheme]
    known = [own.name for own in dataclasses.fields(made)]
    given = {name: own for name, own in value.items() if name != "scheme"}
    for name in given:
        if name not in known:
            raise BadSetting(f"watermark: a key of {scheme} has no {_shown(name)}; {near(str(name)[:100], known)}")
    for name in ("key", "vocabulary"):
        if name not in given:
            raise BadSetting(f"watermark: the key has no {name}.")
    return made(**given)


def fresh_key(scheme: str, vocabulary: int, **fields: Any) -> WatermarkKey:
    """A key with a new secret. Raises BadSetting."""
    return key_of({"scheme": scheme, "key": secrets.randbits(63), "vocabulary": vocabulary, **fields})


def read_key(path: Path) -> WatermarkKey:
    """A key from a file. Raises BadInput and BadSetting."""
    return key_of(_read(path))


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise BadInput(f"{path} cannot be read: {error.strerror}.") from None
    except ValueError:
        raise BadInput(f"{path} is no key: it holds no JSON; `decodery watermark` writes one.") from None


def _shown(value: Any) -> str:
    """What was given; an object might hold a secret."""
    return "an object" if isinstance(value, Mapping) else repr(value)[:100]


class WatermarkKeys(ValueKind):
    """A key, or none."""

    option = str

    def schema(self) -> Mapping[str, Any]:
        numbers = {name: kind.schema() for name, kind in FIELDS.items()}
        return {
            "type": "object",
            "properties": {"scheme": {"type": "string", "enum": list(SCHEMES)}, **numbers},
            "required": ["scheme", "key", "vocabulary"],
        }

    def check(self, name: str, value: Any, vocabulary: int) -> WatermarkKey | None:
        if value is None:
            return None
        key = read_key(value) if isinstance(value, Path) else key_of(value)
        if vocabulary not in (ANY_VOCABULARY, key.vocabulary):
            raise BadSetting(
                f"{name}: the key is for {key.vocabulary} tokens, but this model scores {vocabulary}; make a key for it."
            )
        return key

    def read(self, given: Any) -> Any:
        return _read(Path(given))
