"""The trie of drawn texts: what it learns, by enumerated languages over scripted laws and a small network."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import cache

import numpy as np
import pytest
import torch

from decodery.constraints import grammatical_trie
from decodery.constraints.grammatical_trie import Node, Trie
from decodery.evaluation.weights_check import DEAD_END, dead_end_law, masses
from decodery.testing import goodness_of_fit, total_variation

Text = tuple[int, ...]
MOST = 10_000
MASSES = {(*("ab".index(sign) for sign in text), 2): mass for text, mass in masses().items()}
DEAD = (*("ab".index(sign) for sign in DEAD_END), 2)


class Language:
    """Some texts, each with its end, and a law of the next token. After a prefix their tokens may follow."""

    def __init__(self, texts: Sequence[Text], law: Callable[[Text], np.ndarray]):
        self.law = cache(law)
        self.follows: dict[Text, np.ndarray] = {}
        for text in texts:
            for place, token in enumerate(text):
                known = self.follows.get(text[:place], np.zeros(0, np.int64))
                self.follows[text[:place]] = np.union1d(known, [token])
        self.masses = {
            text: math.prod(float(self.law(text[:place])[token]) for place, token in enumerate(text)) for text in texts
        }
        self.mass = math.fsum(self.masses.values())
        self.aligned = {text: mass / self.mass for text, mass in self.masses.items()}

    def masked(self) -> Mapping[Text, float]:
        """The law of masking token by token."""
        found = {}
        for text in self.masses:
            found[text] = 1.0
            for place, token in enumerate(text):
                law = self.law(text[:place])
                found[text] *= float(law[token] / law[self.follows[text[:place]]].sum())
        return found


def draw(trie: Trie, language: Language, numbers: np.random.Generator, renormalised: bool = False) -> Text:
    """A draw, which the trie learns from. renormalised: the mistake of taking the masked law for the model's."""
    node: Node | None = trie.root
    text: Text = ()
    path = []
    while language.follows.get(text) is not None:
        ids = language.follows[text]
        shares = language.law(text)[ids]
        if renormalised:
            shares = shares / shares.sum()
        weights = shares
        if node is not None:
            path.append(node)
            weights = trie.arrive(node, ids, shares, keep=True)
        place = int(np.searchsorted(np.cumsum(weights), numbers.random() * weights.sum(), side="right"))
        if node is not None:
            node = trie.follow(node, ids, shares, place, MOST)
        text = (*text, int(ids[place]))
    trie.learn(path)
    return text


@pytest.fixture(scope="module")
def dead_end() -> Language:
    return Language(list(MASSES), lambda text: np.array(dead_end_law((0, *text))))


@pytest.fixture(scope="module")
def network() -> Language:
    """60 of the texts of up to five of seven letters, and the law of a random network of two layers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=8,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        tie_word_embeddings=False,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = LlamaForCausalLM(config).eval()
    torch.nn.init.normal_(model.lm_head.weight, std=1.0, generator=torch.Generator().manual_seed(4))
    choices = np.random.default_rng(5)
    every = [text for length in (2, 3, 4, 5) for text in itertools.product(range(7), repeat=length)]
    texts = [(*every[place], 7) for place in choices.choice(len(every), 60, replace=False)]

    @torch.no_grad()
    def law(text: Text) -> np.ndarray:
        logits = model(torch.tensor([[7, *text]])).logits[0, -1].double()
        return np.asarray(logits.softmax(-1).numpy())

    return Language(texts, law)


def test_the_first_draw_is_masking_s(dead_end: Language) -> None:
    """The share of the dead end is .45, which is its distance to the model's law among the valid texts."""
    assert dead_end.mass == pytest.approx(0.550000072, abs=1e-12)
    assert total_variation(dead_end.masked(), dead_end.aligned) == pytest.approx(0.45, abs=1e-6)
    numbers = np.random.default_rng(0)
    drawn = Counter(draw(Trie(), dead_end, numbers) for _ in range(3000))
    assert drawn[DEAD] / 3000 == pytest.approx(0.45, abs=0.02)
    assert goodness_of_fit(drawn, dead_end.masked()).p_value > 0.001


def test_draws_come_to_have_the_model_s_law(dead_end: Language) -> None:
    """After 1,000 draws the law read from the trie is the aligned one, and the next 3,000 have it."""
    trie, numbers = Trie(), np.random.default_rng(1)
    bounds = [trie.root.bound]
    for _ in range(1000):
        assert draw(trie, dead_end, numbers) in dead_end.masses
        bounds.append(trie.root.bound)
    assert all(later <= earlier for earlier, later in itertools.pairwise(bounds))
    assert min(bounds) >= dead_end.mass - 1e-12
    assert bounds[-1] == pytest.approx(dead_end.mass, abs=1e-6)
    assert total_variation(dict(trie.texts()), dead_end.aligned) < 1e-6
    drawn = Counter(draw(trie, dead_end, numbers) for _ in range(3000))
    assert drawn[DEAD] == 0
    assert total_variation({text: count / 3000 for text, count in drawn.items()}, dead_end.aligned) < 0.045
    assert trie.draws == 4000


def test_the_law_of_a_network(network: Language) -> None:
    """The last 5,000 of 20,000 draws have the aligned law (chi-square, alpha 0.001); as many of masking have not (1e-6)."""
    assert total_variation(network.masked(), network.aligned) >= 0.1
    trie, numbers = Trie(), np.random.default_rng(2)
    drawn = [draw(trie, network, numbers) for _ in range(15_000)]
    before = trie.root.bound
    last = Counter(draw(trie, network, numbers) for _ in range(5000))
    assert set(drawn) <= set(network.masses)
    assert network.mass - 1e-12 <= trie.root.bound <= before
    assert goodness_of_fit(last, network.aligned).p_value > 0.001
    masked = network.masked()
    texts = list(masked)
    shares = np.array([masked[text] for text in texts])
    places = numbers.choice(len(texts), 5000, p=shares / shares.sum())
    assert goodness_of_fit(Counter(texts[place] for place in places), network.aligned).p_value < 1e-6


def test_the_masked_law_teaches_nothing(dead_end: Language) -> None:
    """With probabilities among what may follow the bound stays 1, and every draw is masking's."""
    trie, numbers = Trie(), np.random.default_rng(3)
    drawn = Counter(draw(trie, dead_end, numbers, renormalised=True) for _ in range(1000))
    assert trie.root.bound == pytest.approx(1.0, abs=1e-12)
    assert drawn[DEAD] / 1000 == pytest.approx(0.45, abs=0.05)


def test_small_masses_are_not_lost() -> None:
    """Of a chain of forced tokens the bound is their product, however small; and beside a sum that rounds."""
    trie = Trie()
    path = [trie.root]
    for _ in range(40):
        ids = np.array([1], np.int64)
        trie.arrive(path[-1], ids, np.array([1e-3]))
        child = trie.follow(path[-1], ids, np.array([1e-3]), 0, MOST)
        assert child is not None
        path.append(child)
    trie.learn(path)
    assert trie.root.bound == pytest.approx(1e-120, rel=1e-9)
    trie = Trie()
    ids, shares = np.array([0, 1, 2], np.int64), np.array([0.1, 0.2, 0.3])
    trie.arrive(trie.root, ids, shares)
    for place in range(3):
        child = trie.follow(trie.root, ids, shares, place, MOST)
        assert child is not None
        trie.arrive(child, np.array([0], np.int64), np.array([1e-30]))
        trie.learn([trie.root, child])
    assert trie.root.bound == pytest.approx(0.6e-30, rel=1e-9)
    assert trie.root.rest == 0.0


def test_a_dead_end_has_no_mass() -> None:
    trie = Trie()
    ids, shares = np.array([4, 9], np.int64), np.array([0.25, 0.5])
    trie.arrive(trie.root, ids, shares)
    child = trie.follow(trie.root, ids, shares, 1, MOST)
    assert child is not None
    none = np.zeros(0)
    assert trie.arrive(child, none.astype(np.int64), none).tolist() == []
    trie.learn([trie.root, child])
    assert (child.bound, trie.root.bound) == (0.0, 0.25)
    assert trie.arrive(trie.root, ids, shares).tolist() == [0.25, 0.0]
    assert shares.tolist() == [0.25, 0.5]


def test_places_have_an_end() -> None:
    """What is behind them is drawn from the bounds that are there; known places are still found."""
    trie = Trie()
    ids, shares = np.array([0, 1], np.int64), np.array([0.5, 0.25])
    trie.arrive(trie.root, ids, shares)
    first = trie.follow(trie.root, ids, shares, 0, 2)
    assert first is not None
    assert trie.follow(trie.root, ids, shares, 1, 2) is None
    assert trie.follow(trie.root, ids, shares, 0, 2) is first
    assert (trie.nodes, trie.root.rest) == (2, 0.25)


def test_a_token_that_rounding_put_out_of_the_law_harms_nobody() -> None:
    trie = Trie()
    trie.arrive(trie.root, np.array([3, 5], np.int64), np.array([0.5, 0.25]))
    gone = trie.follow(trie.root, np.array([3, 5], np.int64), np.array([0.5, 0.25]), 1, MOST)
    assert gone is not None
    gone.bound = 0.5
    assert trie.arrive(trie.root, np.array([3], np.int64), np.array([0.5])).tolist() == [0.5]


def test_laws_are_kept_as_far_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grammatical_trie, "LAW_BYTES", 40)
    trie = Trie()
    ids, shares = np.array([0, 1], np.int64), np.array([0.5, 0.5])
    trie.arrive(trie.root, ids, shares)
    assert trie.root.law is None
    trie.arrive(trie.root, ids, shares, keep=True)
    assert trie.root.law is not None
    child = trie.follow(trie.root, ids, shares, 0, MOST)
    assert child is not None
    trie.arrive(child, ids, shares, keep=True)
    assert child.law is None


def test_a_trie_survives_as_arrays(network: Language) -> None:
    trie, numbers = Trie(), np.random.default_rng(4)
    for _ in range(300):
        draw(trie, network, numbers)
    other = Trie.of_arrays(trie.as_arrays())
    assert (other.draws, other.nodes, other.root.bound) == (300, trie.nodes, trie.root.bound)
    for name, column in trie.as_arrays().items():
        assert np.array_equal(column, other.as_arrays()[name], equal_nan=name == "rests")
    one, same = np.random.default_rng(5), np.random.default_rng(5)
    assert [draw(trie, network, one) for _ in range(200)] == [draw(other, network, same) for _ in range(200)]


@pytest.mark.parametrize(
    ("name", "place", "value", "message"),
    [
        ("parents", 2, 2, "hold no trie"),
        ("parents", 1, -1, "hold no trie"),
        ("parents", 0, 0, "hold no trie"),
        ("bounds", 1, 1.5, "no probabilities"),
        ("bounds", 1, math.nan, "no probabilities"),
        ("shares", 1, -0.5, "no probabilities"),
        ("shares", 1, 1.5, "no probabilities"),
        ("rests", 1, -1.0, "no probabilities"),
    ],
)
def test_arrays_that_are_no_trie(dead_end: Language, name: str, place: int, value: float, message: str) -> None:
    trie = Trie()
    draw(trie, dead_end, np.random.default_rng(0))
    arrays = {key: np.array(column) for key, column in trie.as_arrays().items()}
    arrays[name][place] = value
    with pytest.raises(ValueError, match=message):
        Trie.of_arrays(arrays)
    with pytest.raises(ValueError, match="hold no trie"):
        Trie.of_arrays({**trie.as_arrays(), "tokens": np.zeros(1, np.int32)})


def test_texts_are_told_once_all_were_drawn(dead_end: Language) -> None:
    trie = Trie()
    draw(trie, dead_end, np.random.default_rng(0))
    with pytest.raises(ValueError, match="not all tokens that may follow"):
        dict(trie.texts())
