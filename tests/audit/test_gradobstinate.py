"""GradObstinate on tiny models of words: its search against exhaustive ones, its controls, what each parameter does."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from tiny_models import make_model

import decodery
from decodery.audit import gradobstinate
from decodery.audit.antonyms import ANTONYMS
from decodery.audit.gradobstinate import (
    GradObstinate,
    ObstinateSettings,
    ObstinateText,
    TrialText,
    first_order,
    important_words,
    perplexity,
    verified,
)
from decodery.audit.obstinate_controls import (
    dictionary_of,
    keeps,
    random_words,
    rewritten,
    with_antonyms,
    with_random_words,
)
from decodery.audit.obstinate_report import audit_obstinate
from decodery.audit.predictions import PredictionGradient, Predictor, TextQuestion
from decodery.audit.substitutes import (
    FUNCTION_WORDS,
    MeaningJudge,
    SubstituteWords,
    TextWord,
    content_words,
    related,
    token_spans,
    tokens_of,
)
from decodery.errors import BadInput, Refused
from decodery.language_model import LanguageModel

WORDS = """
happy happily sad brave afraid river stone table chair lemon sugar tiger horse piano music ocean metal glass apple bread snake
cloud tower mango paper green yellow seven eleven winter summer garden kitchen window castle dragon pencil rocket basket
candle butter pepper silver copper velvet cotton marble bottle ladder hammer needle pillow mirror shadow thunder island
""".split()  # noqa: SIM905
TEXT = "Anna saw the happy tiger and the brave horse near the river."
LABELS = TextQuestion(after=" So", labels=(" sad", " lemon", " glass", " winter"))


@cache
def word_tokenizer() -> Any:
    """A byte-level tokenizer with a token for each word and the space before it, but for two."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False, min_frequency=2
    )
    listed = [word for word in WORDS if word not in ("horse", "thunder")]
    tokenizer.train_from_iterator([" " + " ".join(listed) + " saw the and near So."] * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@cache
def worded(seed: int, layers: int = 2) -> LanguageModel:
    model = make_model("llama", seed, vocab_size=len(word_tokenizer()), num_hidden_layers=layers)
    return decodery.wrap(model, word_tokenizer(), name=f"worded-{seed}", fast="off")


@cache
def substitutes() -> SubstituteWords:
    return SubstituteWords(worded(0), MeaningJudge(worded(1)))


@cache
def gradient(question: TextQuestion = LABELS) -> PredictionGradient:
    return PredictionGradient(Predictor(worded(0), question))


def search(question: TextQuestion = LABELS, **settings: Any) -> GradObstinate:
    return GradObstinate(gradient(question).predictor, substitutes(), ObstinateSettings(**settings), gradient(question))


def word(text: str, inside: str = TEXT) -> TextWord:
    start = inside.index(text)
    return TextWord(text, start, start + len(text))


# Words


def test_content_words_are_letters_behind_a_space() -> None:
    listed = content_words("Anna's dog, I said: don't run 7 times over x (now) the Boat-house")
    assert [one.text for one in listed] == ["dog", "said", "run", "times", "Boat"]
    assert "the" in FUNCTION_WORDS
    found = content_words(TEXT)
    assert [TEXT[one.start : one.end] for one in found] == [one.text for one in found]
    assert [one.text for one in found] == ["saw", "happy", "tiger", "brave", "horse", "near", "river"]


def test_forms_of_a_word_are_related() -> None:
    for pair in (("happy", "happily"), ("run", "Running"), ("walk", "walked"), ("big", "BIGGER"), ("able", "unable")):
        assert related(*pair)
        assert related(*pair[::-1])
    for pair in (("happy", "sad"), ("river", "stone"), ("no", "nothing")):
        assert not related(*pair)


def test_a_word_of_several_tokens_is_found_as_a_unit() -> None:
    lm = worded(0)
    ids = lm.tokenize(TEXT)
    spans = token_spans(lm, TEXT, ids)
    horse, tiger = word("horse"), word("tiger")
    first, last = tokens_of(spans, horse.start, horse.end) or (0, 0)
    assert last - first > 1
    assert lm.tokenizer.decode(ids[first:last]) == " horse"
    place = tokens_of(spans, tiger.start, tiger.end)
    assert place is not None
    assert place[1] - place[0] == 1
    assert tokens_of(spans, tiger.start + 1, tiger.end) is None  # a part of a token is no word


def test_tokens_that_say_another_text_are_refused() -> None:
    with pytest.raises(BadInput, match="reads the text as"):
        token_spans(worded(0), "another", worded(0).tokenize(TEXT))


def test_the_allowed_vocabulary_leaves_out_forms_and_what_is_similar() -> None:
    table = substitutes()
    assert all(
        worded(0).encode(f" {one}") == [int(token)] for one, token in zip(table.words, table.tokens, strict=True)
    )
    assert "thunder" not in table.words  # several tokens
    allowed, similar = table.allowed("happy", 0.1)
    by_word = dict(zip(table.words, allowed, strict=True))
    assert not by_word["happy"]
    assert not by_word["happily"]
    expected = [table.judge.similarity("happy", one) for one in table.words]
    assert np.allclose(similar, expected, atol=1e-6)
    others = [not related("happy", one) for one in table.words]
    assert (allowed == (np.array(others) & (similar < 0.1))).all()
    assert table.allowed("happy", 1.0)[0].sum() > allowed.sum() > table.allowed("happy", -0.1)[0].sum() > 0


def test_similarity_is_the_cosine_of_centred_means() -> None:
    judge = MeaningJudge(worded(1))
    rows = worded(1).network.model.get_input_embeddings().weight.detach().double()
    middle = rows.mean(0)

    def vector(text: str) -> torch.Tensor:
        return rows[worded(1).encode(f" {text}")].mean(0) - middle

    for one, other in (("happy", "sad"), ("horse", "thunder")):
        expected = torch.nn.functional.cosine_similarity(vector(one), vector(other), dim=0)
        assert judge.similarity(one, other) == pytest.approx(float(expected), abs=1e-5)
    assert judge.similarity("tiger", "tiger") == pytest.approx(1)


def test_a_model_does_not_judge_itself() -> None:
    with pytest.raises(BadInput, match="name another model"):
        SubstituteWords(worded(0), MeaningJudge(worded(0)))


# Predictions


def test_labels_are_predicted_by_their_tokens() -> None:
    predictor = Predictor(worded(0), LABELS)
    found = predictor.predict(TEXT)
    ids = worded(0).tokenize(f"{TEXT} So")
    assert list(found.ids) == list(ids)
    with torch.no_grad():
        logits = worded(0).network.model(torch.tensor([ids])).logits[0, -1].double()
    law = logits[[worded(0).encode(label)[0] for label in LABELS.labels]].log_softmax(0)
    assert found.law.shape == (1, 4)
    assert np.allclose(found.law[0], law, atol=1e-4)
    assert found.chosen == (int(law.argmax()),)
    assert predictor.says(found) == LABELS.labels[found.chosen[0]]
    other = np.log(np.full((1, 4), 0.25))
    assert found.divergence(other) == pytest.approx(float((law.exp() * (law - np.log(0.25))).sum()), abs=1e-3)
    assert found.change(other) == pytest.approx(np.log(0.25) - float(law.max()), abs=1e-3)
    assert found.divergence(found.law) == 0
    assert not found.same(-found.law)


def test_a_continuation_is_predicted_as_a_whole() -> None:
    predictor = Predictor(worded(0), TextQuestion(continued=5))
    found = predictor.predict(TEXT)
    reply = worded(0).generate(TEXT, temperature=0, max_new_tokens=5, ignore_eos=True)
    assert list(found.chosen) == reply.token_ids
    assert found.law.shape == (5, worded(0).network.vocabulary)
    assert predictor.says(found) == reply.text
    for changed in (TEXT.replace("tiger", "river"), TEXT.replace("brave", "silver")):
        other = worded(0).generate(changed, temperature=0, max_new_tokens=5, ignore_eos=True)
        assert keeps(predictor, TEXT, changed) == (other.token_ids == reply.token_ids)


def test_what_stands_around_a_text_is_read() -> None:
    whole = Predictor(worded(0), TextQuestion(before="The ", after=" So")).whole(TEXT)
    assert whole == f"The {TEXT} So"
    found = search(TextQuestion(before="Then the ", after=" So", labels=LABELS.labels)).attack(TEXT, [word("tiger")])
    assert found.changed.startswith("Anna saw the happy ")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"continued": 0}, "at least one token"),
        ({"labels": (" sad",)}, "no choice"),
        ({"labels": (" sad", " glass"), "continued": 2}, "a label is one token"),
    ],
)
def test_questions_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        TextQuestion(**values)
    with pytest.raises(BadInput, match="first tokens"):
        Predictor(worded(0), TextQuestion(labels=(" sad", " sad")))


def test_the_most_important_word_is_the_one_that_is_missed_most() -> None:
    predictor = Predictor(worded(0), LABELS)
    found, prediction = important_words(predictor, TEXT), predictor.predict(TEXT)

    def without(one: TextWord) -> float:
        ids = predictor.ids(TEXT)
        first, last = tokens_of(token_spans(worded(0), predictor.whole(TEXT), ids), one.start, one.end) or (0, 0)
        return prediction.change(predictor.laws_like(prediction, [[*ids[:first], *ids[last:]]])[0])

    changes = [without(one) for one in found]
    assert changes == sorted(changes)
    assert {one.text for one in found} == {one.text for one in content_words(TEXT)}
    with pytest.raises(BadInput, match="no content word"):
        important_words(predictor, "It was.")


# The search


def test_a_linear_loss_is_first_what_is_best_of_all() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        table, slope = torch.randn(300, 16, generator=generator), torch.randn(16, generator=generator)
        allowed = torch.rand(300, generator=generator) < 0.5
        row = torch.randn(16, generator=generator)
        losses = (table @ slope).masked_fill(~allowed, torch.inf)  # linear in the row that stands there
        found = first_order(table, row, slope, allowed, 50)
        assert found[0] == int(losses.argmin())
        assert found == torch.argsort(losses, stable=True)[:50].tolist()
        assert len(first_order(table, row, slope, allowed, 10**6)) == int(allowed.sum())


def test_the_slope_is_the_derivative_of_the_loss() -> None:
    """By differences: the divergence, and the penalty where the cosine is above the margin."""
    finder = search(penalty=3.0, margin=-1.0)
    prediction = finder.predictor.predict(TEXT)
    state, place = TrialText(finder.predictor, prediction, TEXT), None
    place = state.place(word("tiger"))
    own = finder.gradient.rows(state.ids[slice(*place)]).mean(0)
    row = finder.table[7]

    def loss(moved: torch.Tensor) -> float:
        rows = finder.gradient.rows(state.ids)
        rows[place[0]] = moved
        with torch.no_grad():
            law = finder.gradient.law(rows, ()).double().numpy()
        near = torch.nn.functional.cosine_similarity(moved, own, dim=0)
        return prediction.divergence(law) + 3.0 * max(0.0, float(near) + 1.0)

    slope = finder.slope(state, place, row, own)
    for place_of in (0, 5, 11):
        step = torch.zeros_like(row)
        step[place_of] = 1e-2
        assert float(slope[place_of]) == pytest.approx((loss(row + step) - loss(row - step)) / 2e-2, abs=2e-3)
    without = search(penalty=0.0).slope(state, place, row, own)
    assert not torch.allclose(without, slope)
    at_margin = search(penalty=3.0, margin=1.0).slope(state, place, row, own)
    assert torch.allclose(at_margin, without)


def test_at_the_word_itself_the_loss_is_flat_and_no_search_begins_there() -> None:
    finder = search(penalty=0.0)
    state = TrialText(finder.predictor, finder.predictor.predict(TEXT), TEXT)
    place = state.place(word("tiger"))
    own = finder.gradient.rows(state.ids[slice(*place)]).mean(0)
    flat, elsewhere = finder.slope(state, place, own, own), finder.slope(state, place, finder.table[3], own)
    assert float(flat.norm()) < 1e-4 * float(elsewhere.norm())
    itself = substitutes().words.index("tiger")
    chance = np.random.Generator(np.random.Philox(key=0))
    with pytest.raises(BadInput, match="the loss is flat"):
        next(finder.candidates(state, word("tiger"), chance, start=itself))


def test_a_flat_loss_begins_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    finder = search(restarts=4)
    monkeypatch.setattr(finder, "slope", lambda *ignored: torch.zeros(finder.table.shape[1]))
    state = TrialText(finder.predictor, finder.predictor.predict(TEXT), TEXT)
    chance = np.random.Generator(np.random.Philox(key=0))
    assert list(finder.candidates(state, word("tiger"), chance)) == [[], [], [], []]


def proposals(finder: GradObstinate, seed: int = 0, best: int = 0) -> list[list[int]]:
    state = TrialText(finder.predictor, finder.predictor.predict(TEXT), TEXT)
    state.best = best
    chance = np.random.Generator(np.random.Philox(key=seed))
    return list(finder.candidates(state, word("tiger"), chance))


def test_every_setting_of_the_search_acts() -> None:
    plain = {"steps": 6, "every": 3, "candidates": 5, "restarts": 2}
    found = proposals(search(**plain))
    assert [len(listed) for listed in found].count(0) == 2  # searches
    assert len(found) == 2 * (1 + 6)
    assert [len(listed) > 1 for listed in found[1:7]] == [False, False, True, False, False, True]
    assert max(map(len, found)) <= 6
    for change in ({"steps": 7}, {"every": 2}, {"candidates": 9}, {"restarts": 3}, {"rate": 2.0}, {"similarity": 0.0}):
        assert proposals(search(**{**plain, **change})) != found, change
    assert proposals(search(**plain), seed=1) != found
    assert proposals(search(**plain), best=9) != found  # it goes on from the best real token
    assert all(len(listed) <= 1 for listed in proposals(search(**{**plain, "candidates": 0})))
    # The penalty keeps away from the word where everything near would do.
    allowed = substitutes().allowed("tiger", 0.3)[0]
    assert all(allowed[one] for listed in found for one in listed)


def test_the_start_is_far_from_the_word(monkeypatch: pytest.MonkeyPatch) -> None:
    finder, begun = search(restarts=8, steps=1, similarity=1.0), []
    slope = finder.slope
    monkeypatch.setattr(finder, "slope", lambda *told: begun.append(told[2]) or slope(*told))
    proposals(finder)
    own = finder.gradient.rows(worded(0).encode(" tiger")).mean(0)
    assert len(begun) == 8
    assert max(float(torch.nn.functional.cosine_similarity(row, own, dim=0)) for row in begun) < gradobstinate.FAR


def exhaustive(finder: GradObstinate, text: str, which: TextWord) -> list[int]:
    """All substitutes that keep the prediction, best first."""
    prediction = finder.predictor.predict(text)
    state = TrialText(finder.predictor, prediction, text)
    allowed, similar = substitutes().allowed(which.text, finder.settings.similarity)
    numbers = np.flatnonzero(allowed).tolist()
    laws = finder.predictor.laws_like(
        prediction, [state.with_token(which, int(substitutes().tokens[one])) for one in numbers]
    )
    kept = [
        (prediction.divergence(law), similar[one], one)
        for one, law in zip(numbers, laws, strict=True)
        if prediction.same(law)
    ]
    return [one for *_, one in sorted(kept)]


def test_what_is_found_is_the_best_of_all_where_all_are_tried() -> None:
    """A list as long as the vocabulary, at the first step, is an exhaustive search."""
    finder = search(candidates=10**6, every=1)
    for which in ("tiger", "horse", "happy"):
        found = finder.attack(TEXT, [word(which)])
        best = exhaustive(finder, TEXT, word(which))
        assert found.found == bool(best)
        if best:
            assert found.substitutions[0].substitute == substitutes().words[best[0]]


def test_every_success_is_one_when_it_is_read_from_its_text() -> None:
    finder = search(words=2)
    texts = [
        TEXT,
        "We left the green castle and a yellow dragon by the winter garden.",
        "He put the candle and the butter on the kitchen table.",
    ]
    found = [finder.attack(text) for text in texts]
    assert any(one.found for one in found)
    for one in found:
        assert one.text in texts
        prediction = finder.predictor.predict(one.text)
        law = finder.predictor.predict(one.changed).law
        assert one.divergence == pytest.approx(prediction.divergence(law), abs=1e-5)
        assert one.change == pytest.approx(prediction.change(law), abs=1e-5)
        if not one.found:
            continue
        assert len(one.substitutions) == len(one.checked) == 2
        assert finder.predictor.predict(one.changed).chosen == prediction.chosen
        for told in one.substitutions:
            assert one.changed[told.start :].startswith(told.substitute)
            assert told.word not in one.changed.split()
            assert told.similarity == pytest.approx(
                substitutes().judge.similarity(told.word, told.substitute), abs=1e-5
            )
            assert told.similarity < 0.3
            assert told.checked >= 1
            assert 1 <= told.searches <= 5
    assert [finder.attack(text) for text in texts] == found
    others = [search(words=2, seed=1).attack(text) for text in texts]
    assert others != found


def test_verification_fails_for_each_of_its_reasons() -> None:
    finder = search()
    found = finder.attack(TEXT, [word("tiger")])
    assert found.found
    made, prediction = found.substitutions, finder.predictor.predict(TEXT)

    def told(changed: str = found.changed, made: Any = made, similarity: float = 0.3) -> bool:
        return verified(finder.predictor, substitutes(), prediction, changed, made, similarity)

    assert told()
    assert not told(similarity=made[0].similarity - 1e-3)
    assert not told(made=[replace(made[0], start=made[0].start + 1)])
    assert not told(made=[replace(made[0], substitute="basket" if made[0].substitute != "basket" else "candle")])
    flipped = next(
        changed
        for other in substitutes().words
        if not keeps(finder.predictor, TEXT, changed := TEXT.replace("tiger", other))
    )
    substitute = flipped[made[0].start :].split()[0]
    assert not told(changed=flipped, made=[replace(made[0], substitute=substitute)], similarity=2.0)
    several = TEXT.replace("tiger", "thunder")  # a word of several tokens is no token of the vocabulary
    assert not told(changed=several, made=[replace(made[0], substitute="thunder")], similarity=2.0)


def test_fewer_words_than_wanted_are_no_success() -> None:
    assert not search(words=2).attack(TEXT, [word("tiger")]).found


def test_weights_stay_as_they_are() -> None:
    model = worded(0).network.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    search(words=2, seed=3).attack(TEXT)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"words": 0}, "words must be at least 1"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"every": 0}, "every must be at least 1"),
        ({"restarts": 0}, "restarts must be at least 1"),
        ({"candidates": -1}, "candidates must not be negative"),
        ({"penalty": -1.0}, "penalty must not be negative"),
        ({"rate": 0.0}, "rate must be above 0"),
        ({"margin": 2.0}, "margin is a cosine"),
        ({"similarity": -2.0}, "similarity is a cosine"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        ObstinateSettings(**values)


# Controls


def test_random_words_are_drawn_as_often_as_the_search_read() -> None:
    finder = search()
    prediction = finder.predictor.predict(TEXT)
    shares = {one: len(exhaustive(finder, TEXT, one)) for one in content_words(TEXT)}
    which = [
        min(shares, key=lambda one: abs(shares[one] - len(WORDS) / 2))
    ]  # about half of all words keep the prediction

    def drawn(count: int, seed: int = 0) -> ObstinateText:
        settings = ObstinateSettings(seed=seed)
        return random_words(finder.predictor, substitutes(), prediction, TEXT, which, [count], settings)

    everything = drawn(10**6)
    assert everything.found == bool(exhaustive(finder, TEXT, which[0]))
    assert drawn(0).changed == TEXT
    assert not drawn(0).found
    assert [drawn(1, seed).checked for seed in range(3)] == [(1,)] * 3
    assert len({drawn(1, seed).found for seed in range(12)}) == 2
    settings = ObstinateSettings()
    changed = with_random_words(substitutes(), TEXT, [word("happy"), word("tiger")], settings)
    words = changed.split()
    assert words[3] in substitutes().words
    assert words[4] in substitutes().words
    assert "happy" not in words
    assert with_random_words(substitutes(), TEXT, which, replace(settings, seed=5)) != with_random_words(
        substitutes(), TEXT, which, settings
    )
    with pytest.raises(BadInput, match="no word is allowed"):
        with_random_words(substitutes(), TEXT, which, replace(settings, similarity=-1.0))


def test_antonyms_replace_words_that_have_one() -> None:
    assert with_antonyms(TEXT, [word("happy"), word("brave")]) == TEXT.replace("happy", "sad").replace(
        "brave", "afraid"
    )
    assert with_antonyms(TEXT, [word("happy"), word("tiger")]) is None
    assert all(ANTONYMS[other] for other in ANTONYMS.values())


def test_a_dictionary_is_what_was_found_most() -> None:
    def found(one: str, other: str, real: bool = True) -> ObstinateText:
        told = search().attack(TEXT, [word("tiger")]).substitutions[0]
        return ObstinateText(TEXT, TEXT, real, (replace(told, word=one, substitute=other),), 0.0, 0.0, (1,))

    texts = [found("Tiger", "river"), found("tiger", "stone"), found("tiger", "stone"), found("horse", "glass")]
    texts += [found("happy", "green", real=False)]
    assert dictionary_of(texts) == {"tiger": "stone", "horse": "glass"}
    assert dictionary_of(texts, least=2) == {"tiger": "stone"}
    assert rewritten("A Tiger and a tiger saw the horse.", dictionary_of(texts)) == "A Stone and a stone saw the glass."


def test_perplexity_is_that_of_the_text() -> None:
    scored = worded(0).score(TEXT)
    assert perplexity(Predictor(worded(0), LABELS), TEXT) == pytest.approx(
        float(np.exp(-scored.logprobs[1:].double().mean())), rel=1e-5
    )


def test_the_report_has_controls_and_other_models() -> None:
    texts = [TEXT, "We saw the happy dragon and a brave horse."]
    settings = ObstinateSettings(words=2, candidates=20)
    report = audit_obstinate(worded(0), worded(1), texts, LABELS, settings, [worded(2), worded(3, 1)])
    assert [row.search for row in report.rows] == [search(words=2, candidates=20).attack(text) for text in texts]
    told = report.as_dict()
    found = [row for row in report.rows if row.search.found]
    assert told["rates"]["GradObstinate"]["kept"] == len(found)
    assert told["rates"]["random, one draw"]["texts"] == 2
    for other in (worded(2), worded(3, 1)):
        predictor = Predictor(other, LABELS)
        kept = sum(keeps(predictor, row.search.text, row.search.changed) for row in found)
        assert told["rates"][f"the same words on {other.name}"]["kept"] == kept
        kept = sum(keeps(predictor, row.search.text, row.random) for row in found)
        assert told["rates"][f"random words on {other.name}"]["kept"] == kept
    for row, text in zip(report.rows, texts, strict=True):
        words = important_words(Predictor(worded(0), LABELS), text)[:2]
        assert row.opposite == with_antonyms(text, words)
        assert sum(row.many.checked) <= sum(row.search.checked)
        assert row.random_kept == keeps(Predictor(worded(0), LABELS), text, row.random)
    assert "reconstruct" in told["reconstructed"]
    with pytest.raises(BadInput, match="no texts"):
        audit_obstinate(worded(0), worded(1), [], LABELS, settings)
    with pytest.raises(BadInput, match="words to replace"):
        audit_obstinate(worded(0), worded(1), ["The tiger."], LABELS, settings)


def test_gradients_need_modules() -> None:
    from decodery.testing import scripted_language_model, story_scorer

    lm = scripted_language_model(story_scorer())
    with pytest.raises(Refused, match="fast='off'"):
        PredictionGradient(Predictor(lm, TextQuestion()))
