"""AriEL through the engine: points to texts and back, paths between texts, what it costs, and what is refused."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from decodery.engine.method import Exactness
from decodery.engine.registry import method as as_method
from decodery.errors import BadParameter, Refused
from decodery.language_model import LanguageModel
from decodery.replies import Reply
from decodery.sampling.chance import LowDiscrepancy, Recording, Replay
from decodery.search.ariel import Ariel
from decodery.testing import LetterTokenizer, MethodLaws, SmallLanguageModel, TabularScorer, toy_language_model

PROMPT = [0, 1, 2]
END = 5


class TestAriel(MethodLaws):
    """All laws but enumeration: a point is made of numbers, and has no branches. Five hundred samples surely notice a law that
    is 0.2 off, such as that of temperature 0.6 in place of 0.8; nearer ones the volumes tell, which are exact."""

    samples = 500
    methods = ("ariel", "ariel(dimensions=2)", "ariel(dimensions=64, precision=float)")

    def test_sampled_law_is_that_of_plain_decoding_exactly(self) -> None:
        for method in self.methods:
            with pytest.raises(Refused, match="draws points as numbers"):
                super().assert_exact(*self.tabular_host(3), method, self.exact_settings[0])


def model(stops: tuple[int, ...] = (END,)) -> SmallLanguageModel:
    """Letters a to f, of which the last ends a text."""
    return SmallLanguageModel(TabularScorer(6, order=None, seed=3), LetterTokenizer(6), stops)


def decoded(spec: str, lm: LanguageModel | None = None, **settings: Any) -> Any:
    given = {"temperature": 1.0, "max_new_tokens": 40, "seed": 4, **settings}
    return (lm or model()).generate(PROMPT, f"ariel({spec})", **given)


def told(reply: Reply) -> dict[str, Any]:
    found: dict[str, Any] = reply.stats.details["ariel"]
    return found


def texts(count: int, length: int) -> list[str]:
    generator = np.random.default_rng(3)
    return ["".join("abcde"[letter] for letter in generator.integers(0, 5, length)) for _ in range(count)]


# There and back


@pytest.mark.parametrize(
    ("spec", "length"), [("", 20), ("dimensions=1", 20), ("dimensions=2", 150), ("precision=float", 30)]
)
def test_a_text_comes_back_from_its_point(spec: str, length: int) -> None:
    """With the end token behind it, or told its length; and from its point as it is told, in another request."""
    lm = model()
    for text in texts(10, length):
        reply = decoded(f"text={text}, {spec}".removesuffix(", "), lm, max_new_tokens=length + 5)
        assert (reply.text, reply.finish_reason) == (text, "stop")
        assert reply.token_ids[-1] == END
        [encoded] = told(reply)["encoded"]
        assert (encoded["point"], encoded["log_volume"]) == (told(reply)["point"], told(reply)["log_volume"])
        assert encoded["tokens"] == length + 1
        again = decoded(f"point='{encoded['point']}', {spec}".removesuffix(", "), lm, max_new_tokens=length + 5, seed=9)
        assert again.token_ids == reply.token_ids
        assert told(again)["encoded"] == []
        full = decoded(f"text={text}, {spec}".removesuffix(", "), lm, max_new_tokens=length)
        assert (full.text, full.finish_reason) == (text, "length")


def test_the_volume_of_a_reply_is_its_probability() -> None:
    lm = model()
    for settings in ({}, {"temperature": 0.6, "top_k": 4}, {"repetition_penalty": 1.4}):
        for seed in range(5):
            reply = decoded("", lm, seed=seed, logprobs=0, **settings)
            assert told(reply)["log_volume"] == pytest.approx(
                sum(entry.processed for entry in reply.logprobs), abs=1e-4
            )


def test_without_end_tokens_a_text_is_followed_by_more() -> None:
    for lm, more in ((model(()), {}), (model(), {"ignore_eos": True})):
        reply = decoded("text=abcde", lm, max_new_tokens=9, **more)
        assert reply.text.startswith("abcde")
        assert len(reply.token_ids) == 9
        assert told(reply)["encoded"][0]["tokens"] == 5


def test_the_likeliest_of_several_end_tokens_ends_a_text() -> None:
    lm = model((1, END))
    ends = set()
    for text in ("acd", "dda", "ca", "ecc", "edc", "aad"):
        reply = decoded(f"text={text}", lm)
        token = reply.token_ids[-1]
        law = lm.network.score([tuple(PROMPT) + tuple(reply.token_ids[:-1])], True)[0]  # type: ignore[attr-defined]
        assert token == max((1, END), key=lambda end: float(law[end]))
        assert reply.text == text
        ends.add(token)
    assert ends == {1, END}


def test_a_text_that_a_stop_string_ends_is_read_so_far() -> None:
    reply = decoded("text=abcde", stop=["cd"])
    assert reply.text == "ab"
    assert told(reply)["encoded"][0]["tokens"] == 4


def test_random_points_are_told_and_any_text_can_be_had_again() -> None:
    lm = model()
    replies = decoded("dimensions=3", lm, n=8)
    assert len({tuple(reply.token_ids) for reply in replies}) > 6
    for reply in replies:
        assert decoded(f"point='{told(reply)['point']}', dimensions=3", lm, seed=77).token_ids == reply.token_ids


def test_greedy_decoding_has_one_text_whose_box_is_the_cube() -> None:
    lm = model()
    plain = lm.generate(PROMPT, "autoregressive", max_new_tokens=12)
    for spec in ("", "point='0.3 0.9', dimensions=2", f"text={plain.text}"):
        reply = decoded(spec, lm, temperature=0.0, max_new_tokens=12)
        assert reply.token_ids == plain.token_ids
        assert told(reply)["log_volume"] == 0.0
    recording = Recording()
    decoded("", lm, temperature=0.0, chance=recording)
    assert not any(recording.runs), "where all points are in one box none is drawn"
    with pytest.raises(Refused, match="token 1 of 'eee' has no probability"):
        decoded("text=eee", lm, temperature=0.0)


@pytest.mark.parametrize("dimensions", [1, 2])
def test_low_discrepancy_samples_are_the_texts_of_their_points(dimensions: int) -> None:
    """Point by point, as far as both read the same digits of a double: about 20 bits a dimension."""
    lm, source = model(), LowDiscrepancy(points="halton", dimensions=dimensions)
    plain = lm.generate(PROMPT, "autoregressive", n=16, chance=source, temperature=1.0, seed=2, max_new_tokens=8)
    [points] = source.sets(2, PROMPT, 16)
    for reply, point in zip(plain, points.tolist(), strict=True):
        written = " ".join(str(Fraction(number)) for number in point)
        same = decoded(f"point='{written}', dimensions={dimensions}", lm, max_new_tokens=8)
        assert same.token_ids == reply.token_ids


# Paths and neighbours


def test_a_path_leads_from_one_text_to_another() -> None:
    spec = "text=abcabc, towards=dededede, dimensions=4"
    path = decoded(spec, n=9)
    assert path[0].text == "abcabc"
    assert path[-1].text == "dededede"
    assert len({reply.text for reply in path}) > 2
    ends = [[Fraction(word) for word in entry["point"].split()] for entry in told(path[0])["encoded"]]
    for place, reply in enumerate(path):
        share = Fraction(place, 8)
        point = " ".join(str((1 - share) * a + share * b) for a, b in zip(*ends, strict=True))
        assert decoded(f"point='{point}', dimensions=4").token_ids == reply.token_ids
        assert decoded(f"{spec}, share={place / 8}").token_ids == reply.token_ids
    assert decoded(spec).token_ids == path[4].token_ids


def test_neighbours_lie_within_the_radius() -> None:
    near, far = (decoded(f"text=abcabcabc, dimensions=2, radius={radius}", n=12) for radius in (1e-4, 0.4))
    for replies, radius in ((near, 1e-4), (far, 0.4)):
        [start] = {entry["point"] for reply in replies for entry in told(reply)["encoded"]}
        for reply in replies:
            # a point of the reply's box lies within the radius of the text's point, or at the border of the cube
            again = _moved(start, radius, reply.output)
            assert decoded(f"point='{again}', dimensions=2").token_ids == reply.token_ids
    shared = [_shared(reply.text, "abcabcabc") for reply in near], [_shared(reply.text, "abcabcabc") for reply in far]
    assert min(shared[0]) > max(0, min(shared[1]))
    assert len({reply.text for reply in far}) > 6
    point = decoded("point='0.5 0.5', dimensions=2, radius=0.3", n=4)
    assert len({tuple(reply.token_ids) for reply in point}) > 1


def _moved(start: str, radius: float, sample: int) -> str:
    from decodery.sampling import Noise, Stage

    noise, found = Noise(4, sample), []
    for number, word in enumerate(start.split()):
        drawn = Fraction(noise.uniform(len(PROMPT), Stage.TARGET, ("ariel", number, 0)))
        found.append(min(max(Fraction(word) + Fraction(radius) * (2 * drawn - 1), Fraction(0)), Fraction(1)))
    return " ".join(map(str, found))


def _shared(one: str, other: str) -> int:
    return next(
        (place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


# What it costs


@pytest.mark.parametrize(("reading", "forwards"), [("steps", 12), ("pass", 1)])
def test_forwards(reading: str, forwards: int) -> None:
    """One for the prompt; then one for each token of the text, or one for all, but the last; then one for each but the last."""
    reply = decoded(f"text=abcabcabcabc, reading={reading}")
    assert reply.stats.forwards == 1 + forwards + 12
    assert told(reply)["encoded"][0]["forwards"] == forwards
    plain = decoded("", max_new_tokens=7, ignore_eos=True)
    assert plain.stats.forwards == 7
    one = decoded(f"text=a, reading={reading}", max_new_tokens=1)
    assert told(one)["encoded"][0]["forwards"] == 0
    assert one.text == "a"


def test_both_readings_of_a_text_see_the_same_volume() -> None:
    lm = toy_language_model(layers=2)
    volumes = []
    for reading in ("steps", "pass"):
        for room in (60, 12):
            reply = lm.generate("once upon a time", f"ariel(text=' there was a', reading={reading})", temperature=1.0,
                                max_new_tokens=room)  # fmt: skip
            volumes.append(told(reply)["encoded"][0]["log_volume"])
    assert volumes[0] == pytest.approx(volumes[2], abs=1e-3)
    assert volumes[1] == pytest.approx(volumes[3], abs=1e-3)
    assert reply.stats.forwards > 0


@pytest.mark.parametrize("spec", ["dimensions=1", "", "precision=float"])
def test_a_text_comes_back_on_a_network(spec: str) -> None:
    lm = toy_language_model(layers=2)
    for text in (" there was a cat", " and then", " he said no."):
        inside = f"text='{text}', {spec}".removesuffix(", ")
        reply = lm.generate("once upon a time", f"ariel({inside})", temperature=1.0, max_new_tokens=len(text))
        assert reply.text == text


@pytest.mark.real_model
def test_real_sentences_and_long_passages_come_back() -> None:
    """Twenty sentences in doubles and sixteen dimensions, two passages of two hundred tokens in whole numbers, in sixteen and
    in one. All in the same passes: on the native path a row's scores do not depend on its company."""
    from experiments.ariel import sentences
    from experiments.texts import loaded

    lm, found = loaded("smollm2-135m"), sentences(loaded("smollm2-135m"), 60)
    text = lm.encode(" ".join(found))
    texts = found[:20] + [lm.tokenizer.decode(text[start : start + 200]) for start in (0, 100)]
    parameters = ["precision=float"] * 20 + ["dimensions=16", "dimensions=1"]
    asked = [f"ariel(text={text!r}, {spec})" for text, spec in zip(texts, parameters, strict=True)]
    ids = [lm.encode(text) for text in texts]
    replies = lm.generate(["Here is a question:\n"] * 22, asked, temperature=1.0, max_new_tokens=max(map(len, ids)) + 1)
    assert [reply.token_ids[: len(own)] for reply, own in zip(replies, ids, strict=True)] == ids
    assert min(map(len, ids[20:])) > 190


def test_memory_is_set_aside_for_the_text_too() -> None:
    from decodery.engine.settings import Settings
    from decodery.testing.outputs import new_request

    for spec, count in (("ariel", 1), ("ariel(text=ab)", 2)):
        request, method = new_request(model(), spec, PROMPT, Settings(temperature=1.0, seed=0))
        assert len(method.caches(request)) == count


def test_a_recorded_point_is_replayed() -> None:
    lm, recording = model(), Recording()
    reply = decoded("dimensions=2", lm, chance=recording)
    assert decoded("dimensions=2", lm, chance=Replay(tuple(recording.runs[0])), seed=99).token_ids == reply.token_ids


# What it promises, and what is refused


def test_what_a_text_or_a_point_decides_is_no_sample() -> None:
    assert as_method("ariel").exactness is Ariel.exactness is Exactness.IDENTICAL_TO_SAMPLING
    for spec in ("text=a", "point='0.5', dimensions=1"):
        assert as_method(f"ariel({spec})").exactness is Exactness.QUALITY_CHANGING
        assert decoded(spec).exactness is Exactness.QUALITY_CHANGING
    assert decoded("").exactness is Exactness.IDENTICAL_TO_SAMPLING


def test_what_cannot_be_is_refused() -> None:
    for spec, why in (
        ("point='0.5 0.5'", "a number from 0 to 1 for each of the 16 dimensions"),
        ("point='0.5 1.5', dimensions=2", "not '0.5 1.5'"),
        ("point='0.5 half', dimensions=2", "not '0.5 half'"),
        ("point='1/0', dimensions=1", "not '1/0'"),
        ("point='-0.1', dimensions=1", "not '-0.1'"),
        ("radius=0.1", "radius=0.1 does something only"),
        ("towards=a", "only where text is given"),
        ("text=a, share=0.5", "only where towards is given"),
        ("text=a, point='0.5', dimensions=1", "only without text"),
    ):
        with pytest.raises(BadParameter, match=why):
            as_method(f"ariel({spec})")
    assert as_method("ariel(point='0 1', dimensions=2)").given() == [0, 1]  # type: ignore[attr-defined]
    with pytest.raises(Refused, match="from 1 to 3 tokens, which is max_new_tokens, and 'abcd' has 4"):
        decoded("text=abcd", max_new_tokens=3)
    silent = model()
    silent.tokenizer.encode = lambda text, **_: []  # type: ignore[method-assign]
    with pytest.raises(Refused, match="from 1 to 40 tokens, which is max_new_tokens, and 'a' has 0"):
        decoded("text=a", silent)
    with pytest.raises(Refused, match="token 2 of 'abcd' has no probability under these settings"):
        decoded("text=abcd", bad_words=["b"])
    with pytest.raises(Refused, match="an end has no probability"):
        decoded("text=abcd", min_new_tokens=8)
    with pytest.raises(Refused, match="use precision=exact, or more dimensions"):
        decoded(f"text={texts(1, 38)[0]}, dimensions=1, precision=float")
