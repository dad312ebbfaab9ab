"""HEX: each run is a plain run, and the vote among them depends on nothing but what they say."""

from __future__ import annotations

import itertools
import random

import pytest
from canvas_outcomes import assert_claims_hold

from decodery.diffusion.hex import TEMPERATURE, HiddenExperts, run_seed
from decodery.engine.events import Unmasked
from decodery.engine.registry import method as as_method
from decodery.engine.settings import Settings
from decodery.errors import BadParameter, Refused
from decodery.models.forward import Attend, Forward
from decodery.search.answers import parse
from decodery.search.votes import count, decided
from decodery.testing import (
    LetterTokenizer,
    ScriptedDenoiser,
    confident,
    denoising_language_model,
    toy_diffusion_model,
    watched,
)
from decodery.testing.outputs import finished, new_request

PROMPT = [3, 1, 4, 1, 5]


def _runs(reply):
    return {(run["block"], run["seed"]): run for run in reply.stats.details["runs"]}


def _told(reply):
    """All that is told of the runs and the vote, without sums of logarithms: these round otherwise in another pass."""
    details = dict(reply.stats.details)
    details["runs"] = [{name: value for name, value in run.items() if name != "likelihood"} for run in details["runs"]]
    return details


# One run is a plain one


@pytest.mark.parametrize("block", [1, 4, 6, 12])
@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("more", ["", ", steps=12, cfg_scale=0.5", ", cache=dual", ", cache=freecache"])
def test_one_block_length_and_one_seed_are_the_plain_sampler(block, temperature, more):
    lm = toy_diffusion_model(stop_ids=(6,))
    ours = lm.generate(PROMPT, f"hex(block_length={block}, seeds=1{more})", temperature=temperature, seed=4)
    steps = HiddenExperts(block_length=block).planned(12)
    shared = more if "steps" in more else f"{more}, steps={steps}"
    plain = lm.generate(
        PROMPT,
        f"masked-diffusion(block_length={block}{shared})",
        temperature=temperature or 0.9,  # in place of greedy decoding, as published
        seed=run_seed(4, (block, 0)),
    )
    assert ours.token_ids == plain.token_ids
    assert ours.finish_reason == plain.finish_reason
    assert ours.stats.forwards == plain.stats.forwards
    assert ours.stats.rows == plain.stats.rows
    ours_at = {step for step in ours.stats.step_of if step >= 0}
    assert ours_at == {step for step in plain.stats.step_of if step >= 0}
    assert ours.stats.step_of == plain.stats.step_of


@pytest.mark.parametrize("order", ["random", "margin", "entropy"])
def test_other_orders_are_those_of_the_plain_sampler(order):
    lm = toy_diffusion_model()
    ours = lm.generate(PROMPT, f"hex(block_lengths=6, seeds=1, order={order}, steps=12)", temperature=0.7)
    seed = run_seed(ours.seed, (6, 0))
    rule = "rule=random" if order == "random" else f"value_independent=True, rank={order}"
    plain = lm.generate(PROMPT, f"masked-diffusion({rule}, block_length=6)", temperature=0.7, seed=seed)
    assert (ours.token_ids, ours.stats.step_of) == (plain.token_ids, plain.stats.step_of)


def test_every_run_of_many_is_a_plain_one():
    lm = toy_diffusion_model()
    reply = lm.generate(PROMPT, "hex(seeds=2, answer=text)", seed=11, temperature=1.0)
    runs = _runs(reply)
    assert list(runs) == [(block, seed) for block in (3, 6) for seed in (0, 1)]
    for (block, seed), run in runs.items():
        assert run["run_seed"] == run_seed(11, (block, seed))
        plain = lm.generate(PROMPT, f"masked-diffusion(block_length={block})", seed=run["run_seed"], temperature=1.0)
        assert run["text"] == plain.text
    assert len({run["text"] for run in runs.values()}) > 2


def test_a_temperature_of_zero_leaves_the_runs_greedy():
    lm = toy_diffusion_model()
    reply = lm.generate(PROMPT, "hex(temperature=0, block_lengths=1x2x12, seeds=2, steps=12)")
    for (block, _), run in _runs(reply).items():
        assert run["text"] == lm.generate(PROMPT, f"masked-diffusion(block_length={block})").text


def test_a_temperature_for_greedy_requests_is_refused_beside_one_of_the_request():
    lm = toy_diffusion_model()
    for given in (0, 0.9, 2.0):
        with pytest.raises(Refused, match=f"temperature={given:g} is that of the runs of a greedy request"):
            lm.generate(PROMPT, f"hex(temperature={given})", temperature=0.5)
    spec = "block_length=4, seeds=1"
    asked = lm.generate(PROMPT, f"hex({spec})", temperature=2.0, seed=1)
    assert lm.generate(PROMPT, f"hex({spec}, temperature=2)", seed=1).token_ids == asked.token_ids
    published = lm.generate(PROMPT, f"hex({spec}, temperature=0.9)", seed=1)
    assert lm.generate(PROMPT, f"hex({spec})", seed=1).token_ids == published.token_ids != asked.token_ids


# Nothing depends on how the runs are run


def test_the_order_of_the_runs_and_what_shares_a_pass_change_nothing():
    lm = toy_diffusion_model()
    spec = "hex(block_lengths=2x4x6, seeds=3, steps=12"
    replies = [
        lm.generate(PROMPT, f"{spec}, at_once={at_once})", temperature=1.2, seed=2) for at_once in (1, 2, 4, 5, 100)
    ]
    assert len({tuple(reply.token_ids) for reply in replies}) == 1
    assert all(_told(reply) == _told(replies[0]) for reply in replies)
    assert {reply.stats.forwards for reply in replies} == {9 * 12}

    class Shuffled(HiddenExperts):
        def runs(self, length):
            keys = super().runs(length)
            random.Random(3).shuffle(keys)
            return keys

    shuffled = lm.generate(PROMPT, Shuffled(block_lengths="2x4x6", seeds=3, steps=12), temperature=1.2, seed=2)
    assert shuffled.token_ids == replies[0].token_ids
    assert _told(shuffled) == _told(replies[0])
    packed = lm.generate([PROMPT, [7], PROMPT], f"{spec})", temperature=1.2, seed=2)
    assert packed[0].token_ids == packed[2].token_ids == replies[0].token_ids


def test_runs_draw_by_the_seed_of_the_request():
    assert len({run_seed(seed, key) for seed in (0, 1, 2**64 - 1) for key in ((1, 0), (1, 1), (2, 0))}) == 9
    lm = toy_diffusion_model()
    texts = [lm.generate(PROMPT, "hex(block_lengths=4, seeds=1)", seed=seed).text for seed in range(4)]
    assert len(set(texts)) == 4


def test_memory_is_set_aside_for_the_runs_that_share_a_pass():
    lm = toy_diffusion_model()
    for spec, held in (
        ("block_lengths=4x6, seeds=2, at_once=3", 3),
        ("block_lengths=4x6, seeds=2, at_once=9", 4),
        ("block_length=4, seeds=1, cfg_scale=1.0", 2),
    ):
        request, method = new_request(lm, f"hex({spec}, steps=12)", PROMPT, Settings(seed=0))
        assert method.caches(request) == [(lm.network, len(PROMPT) + 12)] * held


@pytest.mark.parametrize("spec", ["hex", "hex(block_lengths=2x4, order=random, steps=6)", "hex(block_length=3)"])
def test_what_it_says_of_itself_holds(spec):
    assert_claims_hold(toy_diffusion_model(), spec)


def test_samples_of_one_prompt_differ():
    lm = toy_diffusion_model()
    replies = lm.generate(PROMPT, "hex(block_lengths=4, seeds=1)", temperature=1.5, seed=2, n=3)
    assert len({tuple(reply.token_ids) for reply in replies}) == 3


def test_runs_in_step_share_their_passes():
    lm = toy_diffusion_model()
    sizes = []
    original = lm.network.run_pass
    lm.network.run_pass = lambda forwards: (sizes.append(len(forwards)), original(forwards))[1]
    try:
        lm.generate(PROMPT, "hex(block_lengths=4x6, seeds=2, steps=12, at_once=4)")
        assert sizes == [4] * 12
        del sizes[:]
        lm.generate(PROMPT, "hex(block_lengths=4x6, seeds=2, steps=12, at_once=3, cfg_scale=1.0)")
        assert sizes == [6] * 12 + [2] * 12
    finally:
        del lm.network.run_pass


# The count


def test_most_votes_win():
    vote = count({(1, 0): "a", (1, 1): "b", (2, 0): "b", (2, 1): None, (4, 0): "c"})
    assert (vote.winner, vote.run) == ("b", (1, 1))
    assert list(vote.histogram.items()) == [("b", 2), ("a", 1), ("c", 1)]
    assert vote.consensus == 0.5  # of those who voted


def test_ties_go_to_the_smallest_block_then_to_the_lowest_seed():
    assert count({(8, 0): "a", (4, 3): "b", (8, 1): "a", (16, 0): "b"}).winner == "b"
    assert count({(4, 2): "a", (4, 1): "b"}).winner == "b"
    assert count({(16, 0): "c", (8, 0): "a", (4, 3): None}).run == (8, 0)


def test_where_all_abstain_the_first_run_stands():
    vote = count({(8, 1): None, (8, 0): None, (16, 0): None})
    assert (vote.winner, vote.run, vote.histogram, vote.consensus) == (None, (8, 0), {}, 0.0)
    with pytest.raises(ValueError, match="no run"):
        count({})


def test_stopping_early_never_changes_the_winner():
    """All ways in which a run may stop, on random answers: what is declared decided has the winner and text of the whole."""
    generator = random.Random(0)
    saved = undecided = 0
    for _ in range(3000):
        keys = [
            (block, seed) for block in (1, 2, 4)[: generator.randint(1, 3)] for seed in range(generator.randint(1, 4))
        ]
        likely = generator.random()
        answers = {
            key: None if generator.random() < 0.15 else "a" if generator.random() < likely else generator.choice("bcd")
            for key in keys
        }
        whole = count(answers)
        for done in range(1, len(keys)):
            part = {key: answers[key] for key in keys[:done]}
            if decided(part, keys[done:]):
                assert (count(part).winner, count(part).run) == (whole.winner, whole.run)
                saved += 1
            else:
                undecided += 1
    assert saved > 1000
    assert undecided > 1000


def test_it_stops_as_soon_as_any_rule_could():
    """Against all outcomes of the remaining runs, one by one, in any order of running."""
    generator = random.Random(1)
    verdicts = {True: 0, False: 0}
    for _ in range(300):
        keys = [(block, seed) for block in (1, 2) for seed in range(3)]
        generator.shuffle(keys)
        done = generator.randint(1, 5)
        part = {key: generator.choice(["a", "a", "b", None]) for key in keys[:done]}
        left = keys[done:]
        winners = {
            count({**part, **dict(zip(left, answers, strict=True))}).winner
            for answers in itertools.product(["a", "b", "new", None], repeat=len(left))
        }
        # Where nobody has voted yet, later votes decide; a vote of abstentions alone is not held to be decided.
        expected = len(winners) == 1 and winners != {None}
        assert decided(part, left) == expected
        verdicts[expected] += 1
    assert min(verdicts.values()) > 50


def test_nothing_is_decided_before_the_first_run_and_everything_after_the_last():
    assert not decided({}, [(1, 0)])
    assert decided({(1, 0): None}, [])


# Answers


@pytest.mark.parametrize(
    ("texts", "answer"),
    [
        (["1/2", "0.5", "\\frac12", "\\boxed{\\frac{1}{2}}", "so it is \\dfrac{1}{2}.", ".50", "2/4", "$0.5$"], "1/2"),
        (["18", "18.", "18.0", "The answer is 18 dollars.", "\\boxed{18\\text{ cm}}", "$18", "\\boxed{\\$18}"], "18"),
        (["1,234", "= 1234.", "\\boxed{1,\\!234}", "1 + 2 makes 1,234"], "1234"),
        (["-3", "\\boxed{-3}", "it is -3 °C", "-6/2"], "-3"),
        (["\\boxed{x^2 + 1}", "\\boxed{ x^{2}+1}".replace("{2}", "2"), "\\boxed{x^2\\,+\\,1}"], "x^2+1"),
    ],
)
def test_equal_answers_are_equal(texts, answer):
    assert [parse(text, "math") for text in texts] == [answer] * len(texts)


def test_the_last_box_counts_before_any_number():
    assert parse("\\boxed{3} no: \\boxed{\\frac{a}{b}} of 7", "math") == "a/b"
    assert parse("\\boxed{3} and \\boxed{4", "math") == "3"
    assert parse("\\boxed{\\frac{x+1}{2}}", "math") == "(x+1)/(2)"
    assert parse("7/0 of \\boxed{7/0}", "math") == "7/0"


def test_letters_indices_and_texts():
    assert [parse(t, "letter") for t in ("B", "(B)", "The answer is B.", "A or B? Answer: B) since A is not")] == [
        "B"
    ] * 4
    assert [parse(t, "index") for t in ("2", "option 02", "1 is not, 2")] == ["2"] * 3
    assert parse("  a  b\n", "text") == "a b"
    for kind in ("text", "math", "letter", "index"):
        assert parse("", kind) is None
        assert parse(" \n", kind) is None
    assert parse("no idea", "math") is None
    assert parse("no idea", "index") is None
    with pytest.raises(ValueError, match="no kind of answer"):
        parse("a", "other")


# The whole method, with a scripted denoiser


def _voting(script, length=8, stop_ids=(2,)):
    """A denoiser whose text depends on the block that is being filled, as told by which positions are visible."""
    return denoising_language_model(
        ScriptedDenoiser(length, 5, lambda canvas: confident(length, 5, *script(canvas))), stop_ids=stop_ids
    )


def _by_block(canvas):
    """Position 0 holds token 0 where it is filled first (blocks of 1 and 2), and 1 otherwise."""
    later = any(token >= 0 for token in canvas[2:])
    return [0.6, 0.7, *[0.9] * 6], [1 if later else 0, 0, 0, 0, 2, 2, 2, 2]


def test_the_majority_is_given_with_its_histogram():
    lm = _voting(_by_block)
    reply = lm.generate([1], "hex(block_lengths=1x4x8, seeds=1, temperature=0, steps=8)")
    details = reply.stats.details
    assert details["votes"] == {"baaa": 2, "aaaa": 1}
    assert (details["answer"], details["consensus"]) == ("baaa", pytest.approx(2 / 3))
    assert reply.text == "baaa"
    assert reply.token_ids == [1, 0, 0, 0, 2]
    assert reply.finish_reason == "stop"
    # Among the runs that say so it is that of the smallest block; its steps are told as if they were taken now.
    assert reply.stats.step_of == [3, 2, 0, 1, 4, 5, 6, 7]
    told = {o: e.step for e in reply.events if isinstance(e, Unmasked) for o in e.offsets}
    assert told == dict(enumerate(reply.stats.step_of))


def test_votes_are_for_answers_and_not_for_texts():
    """Three texts, two of which say the same: what is voted on is what was read out of them."""

    class Options(LetterTokenizer):
        def decode(self, token_ids, skip_special_tokens=False):
            return "".join((" of", " B", "", " A", " or")[token] for token in token_ids)

    def script(canvas):
        # The second position says B or A by whether it is filled after the fourth, and the first how it is put.
        later, last = canvas[3] >= 0, any(token >= 0 for token in canvas[4:])
        return [0.6, 0.7, 0.5, 0.9, *[0.95] * 4], [4 if later else 0, 1 if last or not later else 3, 0, 0, *[2] * 4]

    lm = _voting(script)
    lm.tokenizer = Options(5)
    spec = "hex(block_lengths=1x4x8, seeds=1, temperature=0, steps=8"
    texts = {run["block"]: run["text"] for run in lm.generate([1], f"{spec})").stats.details["runs"]}
    assert texts == {1: " of B of of", 4: " or A of of", 8: " or B of of"}
    by_text = lm.generate([1], f"{spec})").stats.details
    assert (len(by_text["votes"]), by_text["answer"]) == (3, texts[1].strip())
    by_letter = lm.generate([1], f"{spec}, answer=letter)")
    assert by_letter.stats.details["votes"] == {"B": 2, "A": 1}
    assert [run["answer"] for run in by_letter.stats.details["runs"]] == ["B", "A", "B"]
    assert by_letter.text == texts[1]


def test_the_cost_of_all_runs_is_counted():
    lm = _voting(_by_block)
    reply = lm.generate([1], "hex(block_lengths=1x4x8, seeds=2, temperature=0, steps=8)")
    forwards = [run["forwards"] for run in reply.stats.details["runs"]]
    assert forwards == [5, 5, 8, 8, 8, 8]  # a run ends with the block that holds the end, as it would alone
    assert reply.stats.forwards == sum(forwards)
    assert reply.stats.rows == 9 * sum(forwards)


def test_a_run_that_ends_at_once_abstains():
    """Without blocks this denoiser is surest of the end at the first position, as models trained with padding are."""

    def script(canvas):
        if any(token >= 0 for token in canvas):
            return [0.9] * 8, [0, 0, 2, 2, 2, 2, 2, 2]
        return [0.6, *[0.5] * 6, 0.95], [0, 2, 2, 2, 2, 2, 2, 2]

    def collapsing(canvas):
        confidences, tokens = script(canvas)
        return confidences, [2 if canvas[7] == 2 else tokens[0], *tokens[1:]]

    lm = _voting(collapsing)
    reply = lm.generate([1], "hex(block_lengths=2x8, seeds=2, temperature=0, steps=8)")
    runs = _runs(reply)
    assert [run["collapsed"] for run in runs.values()] == [False, False, True, True]
    assert reply.stats.details["abstained"] == 2
    assert reply.stats.details["consensus"] == 1.0
    assert reply.text == "aa"
    only = lm.generate([1], "hex(block_length=8, seeds=3, temperature=0, steps=8)")
    assert (only.text, only.token_ids) == ("", [2])
    assert only.stats.details["votes"] == {}
    assert only.stats.details["answer"] is None


def test_runs_that_cannot_change_the_winner_are_skipped():
    lm = _voting(lambda canvas: ([0.9] * 8, [0, 1, 0, 1, 2, 2, 2, 2]))
    spec = "hex(block_lengths=1x2x4x8, seeds=3, temperature=0, steps=8, at_once=2"
    whole = lm.generate([1], f"{spec})")
    early = lm.generate([1], f"{spec}, stop_when_decided=True)")
    assert early.token_ids == whole.token_ids
    # All say the same: after six of twelve the rest can at best tie, and would lose the tie.
    assert len(early.stats.details["runs"]) == 6
    assert early.stats.details["runs_planned"] == 12
    assert early.stats.forwards < whole.stats.forwards


@pytest.mark.parametrize("seed", range(6))
def test_stopping_early_gives_the_same_reply_on_a_network(seed):
    lm = toy_diffusion_model(stop_ids=(7, 8))
    spec = "hex(block_lengths=1x2x3x4x6, seeds=4, steps=12, at_once=3, temperature=0.5"
    whole = lm.generate([seed], f"{spec})", seed=seed)
    early = lm.generate([seed], f"{spec}, stop_when_decided=True)", seed=seed)
    assert early.token_ids == whole.token_ids
    assert early.stats.details["answer"] == whole.stats.details["answer"]


def test_the_likeliest_run_may_win_instead():
    lm = toy_diffusion_model()
    reply = lm.generate(PROMPT, "hex(block_lengths=2x6, seeds=3, choice=likelihood)", temperature=1.0, seed=1)
    best = max(reply.stats.details["runs"], key=lambda run: run["likelihood"])
    assert reply.text == best["text"]
    # Of greedy decoding from left to right it is the log probability of each token after those before it.
    from_left = lm.generate(PROMPT, "hex(block_lengths=1, seeds=1, temperature=0, steps=12)")
    total, canvas = 0.0, [*PROMPT, *[23] * 12]
    for offset, token in enumerate(from_left.token_ids):
        [scores] = lm.network.run([Forward(lm.network.new_sequence(), canvas, attend=Attend.FULL)])
        total += float(scores.logits[len(PROMPT) + offset, :23].log_softmax(-1)[token])
        canvas[len(PROMPT) + offset] = token
    assert from_left.stats.details["runs"][0]["likelihood"] == pytest.approx(total, abs=1e-3)


def test_log_probabilities_are_those_of_the_winning_run():
    lm = toy_diffusion_model()
    reply = lm.generate(PROMPT, "hex(block_lengths=1, seeds=1, temperature=0, steps=12)", logprobs=1)
    plain = lm.generate(PROMPT, "masked-diffusion(block_length=1)", logprobs=1)
    assert [one.raw for one in reply.logprobs] == pytest.approx([one.raw for one in plain.logprobs], abs=1e-4)


# Parameters


@pytest.mark.parametrize(
    ("canvas", "lengths", "steps"),
    [
        (256, (8, 16, 32, 64, 128), 128),
        (32, (1, 2, 4, 8, 16), 32),
        (16, (1, 2, 4, 8), 16),
        (12, (3, 6), 12),
        (7, (7,), 7),
    ],
)
def test_the_published_blocks_and_steps_scale_with_the_canvas(canvas, lengths, steps):
    assert HiddenExperts().lengths(canvas) == lengths
    assert HiddenExperts().planned(canvas) == steps


def test_the_defaults_are_the_published_ones():
    method = as_method("hex")
    assert isinstance(method, HiddenExperts)
    assert (method.seeds, TEMPERATURE, method.order, method.choice) == (5, 0.9, "low_confidence", "vote")
    assert len(method.runs(256)) == 25


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("block_lengths=5", "12 steps do not divide into a canvas of 12 with blocks of 5"),
        ("block_lengths=2x4, steps=3", "3 steps do not divide into a canvas of 12 with blocks of 2"),
        ("block_lengths=4, steps=2", "2 steps do not divide"),
        ("block_lengths=4x, steps=12", "numbers joined by x, not '4x'"),
        ("block_lengths=2x4, block_length=4", "only with block_length=auto"),
        ("choice=likelihood, stop_when_decided=True", "only with choice=vote"),
        ("shrink=True", "only with cache=freecache"),
    ],
)
def test_what_does_not_go_together_is_refused(spec, reason):
    with pytest.raises(BadParameter, match=reason):
        toy_diffusion_model().generate(PROMPT, f"hex({spec})")


def test_no_forward_is_asked_before_the_parameters_are_checked():
    lm = toy_diffusion_model()
    with watched(lm.network, lambda forward: pytest.fail("a forward")), pytest.raises(BadParameter):
        lm.generate(PROMPT, "hex(block_lengths=5)")


def test_a_stop_string_ends_the_answer():
    lm = _voting(lambda canvas: ([0.9] * 8, [0, 1, 0, 3, 0, 0, 0, 0]))
    request, method = new_request(lm, "hex(block_length=8, seeds=2, temperature=0)", [1], Settings(seed=0, stop=("d",)))
    finished(request, method)
    assert request.statistics.details["votes"] == {"aba": 2}
    assert request.text == "aba"
