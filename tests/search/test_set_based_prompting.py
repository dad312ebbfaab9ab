"""Set-based prompting: how prompts are read, that the order of parts means nothing, and that nothing less would do."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from functools import cache
from typing import Any

import pytest
import torch
from tiny_models import byte_level_tokenizer, make_model, random_ids
from torch import Tensor

import decodery
from decodery.engine.needs import NEXT_TOKENS
from decodery.engine.prompt_layout import END, SPLIT, START, Arrangement, LaidOutPrompt, PartSet, PromptLayout
from decodery.engine.registry import find, names
from decodery.engine.registry import method as as_method
from decodery.errors import BadParameter, BadPrompt, Refused
from decodery.evaluation import set_check
from decodery.evaluation.check import check_method
from decodery.evaluation.set_check import MARKED, USUAL, Marked, scores_after, widest
from decodery.language_model import LanguageModel
from decodery.models.forward import Forward, Rows
from decodery.prompts import pieces_of
from decodery.testing import MethodLaws, SmallLanguageModel, scripted_language_model, story_scorer, toy_language_model

CANONICAL, GIVEN = Arrangement(), Arrangement("given")
ATTENTION, POSITIONS = Arrangement("given", positions=False), Arrangement("given", attention=False)
WORDS = (
    " red",
    " an old car",
    " b",
    " seven green bottles",
    " under the sea",
    " no",
    " b c",
    " the last of them all",
    " 42",
)


def prompts(count: int = 20) -> list[Marked]:
    """Sets of two to four parts of unequal lengths."""
    found = []
    for number in range(count):
        size = 2 + number % 3
        parts = tuple(WORDS[(number + 2 * place) % len(WORDS)] for place in range(size))
        found.append(Marked(f"Prompt {number}:", parts, f" and so on {number * number}"))
    return found


class TestSetBasedPrompting(MethodLaws):
    """A prompt without marks is read as ever."""

    methods = ("set-based-prompting", "set-based-prompting(method='token-recycling(k=4)', order=given)")


@cache
def wrapped(fast: str = "off", dtype: str = "float32") -> LanguageModel:
    return decodery.wrap(
        make_model("llama", vocab_size=330).to(getattr(torch, dtype)), byte_level_tokenizer(), name="tiny", fast=fast
    )


@cache
def toy() -> SmallLanguageModel:
    lm = toy_language_model(3, layers=3, mixing=4.0)  # attends more than it stands still
    lm.stop_ids = ()
    return lm


def joined(parts: Sequence[str], before: str = "Say:", behind: str = " So:") -> str:
    return Marked(before, tuple(parts), behind).in_order(range(len(parts)))


# How a prompt is read


def test_pieces_of_a_text() -> None:
    assert pieces_of("no marks") == ["no marks"]
    assert pieces_of(f"a{START}b{SPLIT} c {END}d{START}e{END}") == ["a", ("b", " c "), "d", ("e",), ""]
    assert pieces_of(f"{START}b{SPLIT}b{END}{START}e{END}") == ["", ("b", "b"), "", ("e",), ""]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"a {START}b{SPLIT}c", "does not end; write <|end_2d|> behind its last part"),
        (f"a {START}b{START}c{END} d", "does not end"),
        (f"a {START}b{SPLIT}{SPLIT}c{END} d", "a part of a set is empty"),
        (f"a {START}{END} d", "a part of a set is empty"),
        (f"a {END} b {START}c{END} d", "<|end_2d|> stands outside of a set"),
        (f"a {START}c{END} d{SPLIT}e", "<|split_2d|> stands outside of a set"),
        (f"a{SPLIT}b", "<|split_2d|> stands outside of a set"),
        (f"a {START}b{SPLIT}c{END}", "the prompt ends with a set; let a text follow it"),
    ],
)
def test_marks_that_do_not_belong_together_are_refused(text: str, message: str) -> None:
    with pytest.raises(BadPrompt) as refused:
        toy().generate(text, "set-based-prompting")
    assert message in str(refused.value)


def test_pieces_are_tokenised_one_by_one() -> None:
    """Joined, tokens would reach across the borders."""
    lm = wrapped()
    text = joined(("the", " theta"), "the", "the rest")
    ids = lm.tokenize(text, method="set-based-prompting(order=given)")
    assert ids == [token for piece in ("the", "the", " theta", "the rest") for token in lm.encode(piece)]
    for order, parts in (("given", " b a"), ("reversed", " a b"), ("canonical", " a b")):
        found = lm.tokenize(joined((" b", " a")), method=f"set-based-prompting(order={order})")
        assert found == [token for piece in ("Say:", parts[:2], parts[2:], " So:") for token in lm.encode(piece)]
    plain = lm.tokenize(text, method="set-based-prompting(order=given, edit=none)")
    assert (plain, type(plain)) == (ids, list)
    assert lm.tokenize(text) == lm.encode(text) != ids


def test_special_tokens_stand_before_the_text_alone() -> None:
    lm = toy_language_model()
    encode = lm.tokenizer.encode

    def begun(text: str, add_special_tokens: bool = True) -> list[int]:
        return ([259] if add_special_tokens else []) + list(encode(text))

    lm.tokenizer.encode = begun  # type: ignore[method-assign]
    ids = lm.tokenize(joined(("one", "two")), method="set-based-prompting")
    assert ids == [259, *b"Say:onetwo So:"]
    assert lm.tokenize(joined(("one", "two"), ""), method="set-based-prompting") == [259, *b"onetwo So:"]


def test_positions_and_masks_by_hand() -> None:
    """A prefix, a set of unequal parts, a text, another set, and what follows."""
    pieces: list[Any] = [(9,), PartSet(((1, 2, 3), (4,))), (8, 8), PartSet(((5,), (6, 7))), (0,)]
    found = GIVEN.laid_out(pieces)
    assert isinstance(found, LaidOutPrompt)
    assert found == [9, 1, 2, 3, 4, 8, 8, 5, 6, 7, 0]
    assert list(found.layout.positions) == [0, 1, 2, 3, 1, 4, 5, 6, 6, 7, 8]
    hidden = {(row, column) for row, column in (~found.layout.visible).nonzero().tolist() if column <= row}
    assert hidden == {(4, 1), (4, 2), (4, 3), (8, 7), (9, 7)}
    canonical = CANONICAL.laid_out(pieces)
    assert canonical == [9, 4, 1, 2, 3, 8, 8, 5, 6, 7, 0]
    assert list(canonical.layout.positions) == [0, 1, 1, 2, 3, 4, 5, 6, 6, 7, 8]  # type: ignore[attr-defined]
    backwards = Arrangement("reversed").laid_out([*pieces[:3], PartSet(((6, 7), (5, 5))), (0,)])
    assert backwards == [9, 4, 1, 2, 3, 8, 8, 5, 5, 6, 7, 0]
    apart = ATTENTION.laid_out(pieces)
    assert list(apart.layout.positions) == list(range(11))  # type: ignore[attr-defined]
    assert torch.equal(apart.layout.visible, found.layout.visible)  # type: ignore[attr-defined]
    seen = POSITIONS.laid_out(pieces)
    assert list(seen.layout.positions) == list(found.layout.positions)  # type: ignore[attr-defined]
    assert torch.equal(seen.layout.visible, torch.ones(11, 11, dtype=torch.bool).tril())  # type: ignore[attr-defined]


def test_sets_side_by_side_see_each_other_and_equals_among_parts_are_legal() -> None:
    found = GIVEN.laid_out([(), PartSet(((1,), (1,))), (), PartSet(((2, 2), (3, 3))), (4,)])
    assert isinstance(found, LaidOutPrompt)
    assert list(found.layout.positions) == [0, 0, 1, 2, 1, 2, 3]
    hidden = {(row, column) for row, column in (~found.layout.visible).nonzero().tolist() if column <= row}
    assert hidden == {(1, 0), (4, 2), (4, 3), (5, 2), (5, 3)}


def test_a_prompt_that_begins_with_a_set_and_one_of_a_single_token() -> None:
    found = GIVEN.laid_out([PartSet(((1,), (2,))), (3, 4)])
    assert (found, list(found.layout.positions)) == ([1, 2, 3, 4], [0, 0, 1, 2])  # type: ignore[attr-defined]
    assert (~found.layout.visible).tril().nonzero().tolist() == [[1, 0]]  # type: ignore[attr-defined]
    assert GIVEN.laid_out([(5,)]) == [5]
    assert GIVEN.laid_out([PartSet(((1,),)), (2,)]) == [1, 2]


def test_a_layout_that_no_prompt_has_is_refused() -> None:
    """Every row sees itself and nothing behind it; the last one sees all, from the next position."""
    full = torch.ones(3, 3, dtype=torch.bool).tril()
    assert PromptLayout([0, 1, 2], full).usual
    assert PromptLayout([4, 5], full[:2, :2]).positions == [4, 5]
    blind, ahead, hidden = full.clone(), full.clone(), full.clone()
    blind[1, 1], ahead[0, 1], hidden[2, 0] = False, True, False
    for positions, visible, said in (
        ([0], full[:1, :1], "1 rows need a mask"),
        ([0, 1], full, r"2 rows need a mask \[2, 2\], not \[3, 3\]"),
        ([0, 1, 2], blind, "must see itself"),
        ([0, 1, 2], ahead, "none may see a row behind it"),
        ([0, 1, 2], hidden, "must see all rows"),
        ([0, 1, 3], full, "one position after the row before it"),
    ):
        with pytest.raises(ValueError, match=said):
            PromptLayout(positions, visible)


def test_equal_lengths_are_ordered_by_token_ids() -> None:
    parts = ((3, 1), (2, 9), (7,), (2, 1))
    assert list(CANONICAL.ordered(parts)) == [(7,), (2, 1), (2, 9), (3, 1)]


def test_a_single_token_behind_a_short_last_part() -> None:
    pieces: list[Any] = [(9,), PartSet(((1, 2, 3), (4,))), (0,)]
    assert isinstance(CANONICAL.laid_out(pieces), LaidOutPrompt)
    with pytest.raises(
        BadPrompt, match=r"a single token stands behind a set whose last part is not its longest; .* of given"
    ):
        GIVEN.laid_out(pieces)
    assert isinstance(ATTENTION.laid_out(pieces), LaidOutPrompt)
    assert isinstance(GIVEN.laid_out([*pieces[:2], (0, 0)]), LaidOutPrompt)


# Order means nothing


@pytest.mark.parametrize(
    ("fast", "dtype"), [("off", "float32"), ("fused", "float32"), ("off", "bfloat16"), ("fused", "bfloat16")]
)
def test_scores_are_the_same_for_every_order(fast: str, dtype: str) -> None:
    """Bit for bit in the canonical order; as given within rounding in float32."""
    lm = wrapped(fast, dtype)
    assert lm.network.path == {"off": "eager"}.get(fast, fast)
    for marked in prompts():
        texts = [marked.in_order(order) for order in marked.orders()]
        assert widest([scores_after(lm, text, CANONICAL) for text in texts]) == 0
        if dtype == "float32":
            assert widest([scores_after(lm, text, GIVEN) for text in texts]) < 1e-3
            assert widest([scores_after(lm, text, USUAL) for text in texts]) > 0.5, "so the test has power"


def test_neither_edit_alone_would_do() -> None:
    lm, most = wrapped(), []
    for marked in prompts():
        texts = [marked.in_order(order) for order in marked.orders()]
        most.append([widest([scores_after(lm, text, one) for text in texts]) for one in (ATTENTION, POSITIONS)])
    assert sum(attention > 0.05 for attention, _ in most) > 10
    assert sum(positions > 0.05 for _, positions in most) > 10


ONE_TEXT = [n for n in names() if find(n).exactness.lossless and NEXT_TOKENS in find(n).needs and not find(n).together]


@pytest.mark.usefixtures("toy_adapters")
@pytest.mark.parametrize("name", ONE_TEXT)
def test_outputs_are_the_same_for_every_order_whatever_decodes(name: str) -> None:
    """And lossless methods give what plain decoding gives after the set."""
    lm = toy()
    lm.companions["other"] = toy_language_model(7)
    inner = find(name).example or name
    for marked in prompts(3):
        texts = [marked.in_order(order) for order in marked.orders()]
        plain = lm.generate(texts[0], "set-based-prompting(order=given)", max_new_tokens=12)
        assert plain.token_ids != lm.generate(texts[0], "set-based-prompting(edit=none)", max_new_tokens=12).token_ids
        for order in ("canonical", "given"):
            spec = f"set-based-prompting(method='{inner}', order={order})"
            replies = [lm.generate(text, spec, max_new_tokens=12) for text in texts[:6]]
            assert {tuple(reply.token_ids) for reply in replies} == {tuple(plain.token_ids)}


def test_samples_are_the_same_for_every_order() -> None:
    lm, seen = toy(), set()
    marked = prompts()[2]
    for seed in range(4):
        texts = [marked.in_order(order) for order in marked.orders()]
        settings: dict[str, Any] = {"temperature": 1.0, "seed": seed, "max_new_tokens": 12}
        found = {tuple(lm.generate(text, "set-based-prompting", **settings).token_ids) for text in texts[:8]}
        assert len(found) == 1
        seen |= found
    assert len(seen) == 4


def test_tries_read_sets_as_what_draws_them_does() -> None:
    lm, marked = toy(), prompts()[2]
    spec = "best-of-n(method='set-based-prompting(order=given)', samples=4)"
    settings: dict[str, Any] = {"temperature": 1.0, "seed": 1, "max_new_tokens": 8}
    found = [lm.generate(marked.in_order(order), spec, **settings).token_ids for order in marked.orders()[:4]]
    assert all(ids == found[0] for ids in found)
    one = lm.generate(marked.in_order((0, 1, 2, 3)), "set-based-prompting(order=given)", n=4, **settings)
    assert found[0] in [reply.token_ids for reply in one]


@pytest.mark.parametrize("window", [None, 6])
def test_a_sliding_window_goes_by_positions(window: int | None) -> None:
    """A set of more rows than the window: which of them the text behind it sees does not depend on where they lie."""
    lm = decodery.wrap(
        make_model("mistral", vocab_size=330, sliding_window=window), byte_level_tokenizer(), name="tiny", fast="off"
    )
    marked = Marked("Say:", (" abcdefgh", " zyxw", " 0123456789"), " what")
    texts = [marked.in_order(order) for order in marked.orders()]
    assert len(lm.tokenize(texts[0])) > 12
    rows = [scores_after(lm, text, GIVEN) for text in texts]
    assert widest(rows) < 1e-3
    assert widest([scores_after(lm, text, USUAL) for text in texts]) > 0.5


# What a set costs and leaves in the cache


def test_a_single_part_is_an_ordinary_prompt() -> None:
    lm = wrapped()
    text = joined((" one part",))
    ids = lm.tokenize(text, method="set-based-prompting")
    assert not isinstance(ids, LaidOutPrompt)
    whole = PromptLayout(range(len(ids)), torch.ones(len(ids), len(ids), dtype=torch.bool).tril())
    assert whole.usual
    rows = []
    for layout in (None, whole):
        sequence = lm.network.new_sequence()
        if layout is not None:
            lm.network.run([layout.opening(sequence, ids)])
        [scores] = lm.network.run([Forward(sequence, ids[sequence.length :], logits=Rows.LAST)])
        rows.append(scores.logits[0])
    assert widest(rows) < 1e-5
    assert lm.generate(text, "set-based-prompting").token_ids == lm.generate(ids, "autoregressive").token_ids
    moved = torch.ones(3, 3, dtype=torch.bool).tril()
    assert not PromptLayout([0, 2, 3], moved).usual
    moved[1, 0] = False
    assert not PromptLayout([0, 1, 2], moved).usual


def test_the_next_token_stands_behind_the_longest_part_and_not_behind_all_rows() -> None:
    """Decoding from the cache equals reading everything again with a longer mask; another position gives other scores."""
    lm = wrapped()
    ids = lm.tokenize(joined((" a", " long part", " b c")), method="set-based-prompting(order=given)")
    assert isinstance(ids, LaidOutPrompt)
    more, layout = random_ids(4, 1), ids.layout
    sequence = lm.network.new_sequence()
    lm.network.run([layout.opening(sequence, ids)])
    steps: list[Tensor] = []
    for token in [ids[-1], *more]:
        [scores] = lm.network.run([Forward(sequence, [token])])
        steps.append(scores.logits[0])
    assert sequence.positions[len(ids) - 1 :] == [layout.positions[-1] + place for place in range(5)]
    size = len(ids) + len(more)
    visible = torch.ones(size, size, dtype=torch.bool).tril()
    visible[: len(ids), : len(ids)] = layout.visible
    positions = [*layout.positions, *(layout.positions[-1] + place for place in range(1, 5))]
    wrong = [*layout.positions, *range(len(ids), size)]
    rows = []
    for places in (positions, wrong):
        [scores] = lm.network.run([Forward(lm.network.new_sequence(), [*ids, *more], places, visible)])
        rows.append(scores.logits[len(ids) - 1 :])
    assert float((torch.stack(steps) - rows[0]).abs().max()) < 1e-4
    assert float((rows[1] - rows[0])[1:].abs().max()) > 1e-3


def test_rows_of_a_part_do_not_depend_on_the_others() -> None:
    """In all layers, so what is cached of a part does not either; what follows the set does depend on them."""
    lm = wrapped()
    before, first, second, third = 4, 3, 5, 4
    pieces = [random_ids(size, size) for size in (before, first, third, 2)]
    taps = tuple(range(lm.network.layers))
    hidden = []
    for seed in (20, 21):
        parts = PartSet((tuple(pieces[1]), tuple(random_ids(second, seed)), tuple(pieces[2])))
        ids = GIVEN.laid_out([tuple(pieces[0]), parts, tuple(pieces[3])])
        assert isinstance(ids, LaidOutPrompt)
        asked = Forward(lm.network.new_sequence(), ids, ids.layout.positions, ids.layout.visible, taps=taps)
        [scores] = lm.network.run([asked])
        hidden.append(scores.hidden)
    same = [*range(before + first), *range(before + first + second, before + first + second + third)]
    for tap in taps:
        change = (hidden[0][tap] - hidden[1][tap]).abs().amax(dim=1)
        assert float(change[same].max()) < 1e-5
        assert float(change[-1]) > 1e-3
        assert float(change[before + first]) > 1e-3


def test_it_costs_the_rows_of_the_prompt() -> None:
    """One forward reads all rows but the last, which is fed as in any step."""
    lm = toy()
    text = joined((" one", " two", " three"))
    stats = lm.generate(text, "set-based-prompting", max_new_tokens=6).stats
    rows = len("Say: one two three So:")
    assert (stats.prompt_tokens, stats.forwards, stats.rows) == (rows, 1 + 6, rows + 5)


def test_labels_within_parts_bring_the_order_back() -> None:
    """A control: letters that stay with their places make another set of every order."""
    lm, parts = wrapped(), (" red", " green", " blue")
    texts = []
    for order in itertools.permutations(parts):
        texts.append(joined([f" {letter}.{part}" for letter, part in zip("ABC", order, strict=True)]))
    assert widest([scores_after(lm, text, GIVEN) for text in texts]) > 0.05


def test_scoring_answers_reads_the_set_too() -> None:
    lm = toy()
    marked = prompts()[2]
    replies = lm.generate(marked.in_order((0, 1, 2, 3)), "set-based-prompting", max_new_tokens=6, logprobs=0)
    values = []
    for order in marked.orders()[:6]:
        prompt = lm.tokenize(marked.in_order(order), method="set-based-prompting")
        scored, other = lm.score([replies.token_ids, [70, 71]], prompt=prompt)
        assert scored.logprobs.tolist() == pytest.approx([entry.raw for entry in replies.logprobs or []], abs=1e-5)
        values.append((scored.log_probability, other.log_probability))
    assert len(set(values)) == 1
    usual = lm.score(replies.token_ids, prompt=list(prompt))
    assert abs(usual.log_probability - values[0][0]) > 1e-3


def test_any_method_decodes_a_prompt_that_says_how_it_is_read() -> None:
    lm = toy()
    text = joined((" one", " two", " three"))
    ids = lm.tokenize(text, method="set-based-prompting")
    expected = lm.generate(text, "set-based-prompting", max_new_tokens=8)
    replies = lm.generate(
        [ids, text, [70, 71]], ["prompt-lookup", "set-based-prompting", "autoregressive"], max_new_tokens=8
    )
    assert [reply.token_ids for reply in replies[:2]] == [expected.token_ids] * 2
    assert expected.token_ids != lm.generate(list(ids), "autoregressive", max_new_tokens=8).token_ids
    assert expected.prompt_token_ids == tuple(ids)


def test_a_conversation_s_sets_are_read_too() -> None:
    lm = toy()
    messages = [{"role": "user", "content": joined((" one", " two and a half"))}]
    other = [{"role": "user", "content": joined((" two and a half", " one"))}]
    found = lm.generate(messages, "set-based-prompting", max_new_tokens=8)
    assert bytes(found.prompt_token_ids[1:-2]) == b"Say: one two and a half So:"
    assert found.token_ids == lm.generate(other, "set-based-prompting", max_new_tokens=8).token_ids


# What is refused


def test_what_does_not_go_together() -> None:
    for inner in ("best-of-n", "beam-search", "set-based-prompting", "masked-diffusion"):
        with pytest.raises(
            BadParameter, match=f"{inner} cannot decode after a set; name a method that decodes one text"
        ):
            as_method(f"set-based-prompting(method={inner})")
    lm, text = toy(), joined((" one", " two"))
    for marked in (text, f"a{START}b{END} c", f"a{SPLIT}b", f"a{END}"):
        with pytest.raises(BadPrompt, match="was given the token ids of a prompt with marks"):
            lm.generate(lm.encode(marked), "set-based-prompting")
    with pytest.raises(Refused, match="does not run with the target guidance, which reads a prompt of its own"):
        lm.generate(text, "set-based-prompting", target="guidance(scale=2)")
    lm.generate("no set", "set-based-prompting", target="guidance(scale=2)", max_new_tokens=2)
    with pytest.raises(Refused, match="parts stand side by side is no text whose tokens had scores"):
        lm.generate(text, "set-based-prompting", echo=True, logprobs=0)
    echoed = lm.generate(text, "set-based-prompting", echo=True, max_new_tokens=2)
    assert echoed.text.startswith("Say: one two So:")
    with pytest.raises(Refused, match="optimal-multi-draft does not run with chance"):
        lm.generate(text, "set-based-prompting(method=optimal-multi-draft)", chance="arithmetic", temperature=1.0)


def test_a_target_of_the_same_prompt_reads_it_too() -> None:
    lm, marked = toy(), prompts()[2]
    lm.companions["other"] = toy_language_model(7)
    settings: dict[str, Any] = {"target": "ensemble(models=other)", "max_new_tokens": 8}
    found = {tuple(lm.generate(marked.in_order(order), "set-based-prompting(order=given)", **settings).token_ids)
             for order in marked.orders()[:6]}  # fmt: skip
    assert len(found) == 1
    assert found != {
        tuple(lm.generate(marked.in_order((0, 1, 2, 3)), "set-based-prompting", max_new_tokens=8).token_ids)
    }


def test_networks_that_cannot_read_sets_refuse_them() -> None:
    scorer = story_scorer()
    lm = scripted_language_model(scorer)
    prompt = LaidOutPrompt([1, 2, 3, 4], GIVEN.laid_out([(1,), PartSet(((2,), (3,))), (4,)]).layout)  # type: ignore[attr-defined]
    scorer.chains_only = True
    for call in (lambda: lm.generate(prompt), lambda: lm.score([[5]], prompt=prompt)):
        with pytest.raises(Refused, match="reads tokens one after the other, and so no set"):
            call()


def test_texts_beyond_a_border_are_refused() -> None:
    lm = toy_language_model(1)
    long = type("Long", (type(lm.network),), {"border": 24})
    lm.network.__class__ = long
    text = joined((" one", " two"))
    rows = len("Say: one two So:")
    lm.generate(text, "set-based-prompting", max_new_tokens=24 - rows)
    with pytest.raises(Refused, match=f"of more than 24 tokens in another way, and prompt and output have {25}"):
        lm.generate(text, "set-based-prompting", max_new_tokens=25 - rows)
    prompt = lm.tokenize(text, method="set-based-prompting")
    lm.score([[70] * (24 - rows)], prompt=prompt)
    with pytest.raises(Refused, match="in another way"):
        lm.score([[70], [70] * (25 - rows)], prompt=prompt)


# `decodery check`


@pytest.mark.parametrize(
    ("spec", "passed"),
    [
        ("", True),
        ("order=given", True),
        ("edit=positions", None),
        ("edit=attention, order=given", None),
        ("method=prompt-lookup", True),
    ],
)
def test_check_decides_it(spec: str, passed: bool | None) -> None:
    report = check_method(toy(), f"set-based-prompting({spec})", prompts=1, max_new_tokens=4, samples=100)
    [part] = [part for part in report.parts if part.name == "same for every order"]
    assert part.passed is passed, part.detail
    assert report.passed
    assert part.numbers["plain"] > 0.01
    if passed:
        assert part.numbers["outputs"] == 1
        assert (part.numbers["difference"] == 0) or "given" in spec


def test_check_refutes_a_set_that_depends_on_its_order(monkeypatch: pytest.MonkeyPatch) -> None:
    laid_out = Arrangement.laid_out

    def leaking(self: Arrangement, pieces: Any) -> list[int]:
        return laid_out(dataclasses.replace(self, order="given", attention=False), pieces)

    monkeypatch.setattr(Arrangement, "laid_out", leaking)
    report = check_method(toy(), "set-based-prompting", prompts=1, max_new_tokens=4, samples=100)
    [part] = [part for part in report.parts if part.name == "same for every order"]
    assert part.passed is False
    assert not report.passed
    assert len(MARKED) > 3


@pytest.mark.parametrize(
    ("spec", "dtype", "difference", "outputs", "passed"),
    [
        ("", "float32", 0.0, 1, True),
        ("", "float32", 1e-7, 1, False),
        ("", "float32", 0.0, 2, False),
        ("", "bfloat16", 0.0, 1, True),
        ("", "bfloat16", 0.1, 1, False),
        ("order=given", "float32", 9e-4, 1, True),
        ("order=given", "float32", 1.1e-3, 1, False),
        ("order=given", "float32", 0.0, 2, False),
        ("order=given", "bfloat16", 0.0, 1, None),
        ("edit=attention", "float32", 0.0, 1, None),
        ("edit=positions", "float32", 0.0, 1, None),
    ],
)
def test_what_the_check_makes_of_what_it_finds(
    monkeypatch: pytest.MonkeyPatch, spec: str, dtype: str, difference: float, outputs: int, passed: bool | None
) -> None:
    """The last order of one set has other scores, or another output, than the first."""
    odd = Marked("", ("one", "two"), " so").in_order((1, 0))
    sets = (Marked("", ("a", "b"), " so"), Marked("", ("one", "two"), " so"))

    class Told:
        network = type("Network", (), {"dtype": getattr(torch, dtype)})

        def generate(self, text: str, *_: Any, **__: Any) -> Any:
            return type("Reply", (), {"token_ids": [int(text == odd and outputs > 1)]})

    def scores(lm: Any, text: str, arrangement: Arrangement) -> Tensor:
        return torch.tensor([5.0, (2.0 if arrangement == USUAL else difference) * (text == odd)], dtype=torch.float64)

    monkeypatch.setattr(set_check, "MARKED", sets)
    monkeypatch.setattr(set_check, "scores_after", scores)
    steps: list[tuple[str, int, int]] = []
    method = as_method(f"set-based-prompting({spec})")
    [part] = set_check.set_parts(Told(), method, lambda *step: steps.append(step))  # type: ignore[arg-type]
    assert part.passed is passed
    assert part.numbers == {"difference": difference, "outputs": outputs, "plain": 2.0, "dtype": dtype}
    assert steps == [("orders", 0, 2), ("orders", 1, 2), ("orders", 2, 2)]
    assert ("both edits" in part.detail, "float32 only" in part.detail) == (
        "edit" in spec,
        passed is None and "edit" not in spec,
    )


@pytest.mark.real_model
@pytest.mark.parametrize("options", [{"dtype": "float32"}, {}], ids=str)
def test_the_default_model(options: dict[str, Any]) -> None:
    lm = decodery.load("smollm2-135m", **options)
    for marked in MARKED[: 1 if options else 3]:
        texts = [marked.in_order(order) for order in marked.orders()]
        assert widest([scores_after(lm, text, CANONICAL) for text in texts]) == 0
        assert widest([scores_after(lm, text, USUAL) for text in texts]) > 0.5
        if options:
            assert widest([scores_after(lm, text, GIVEN) for text in texts]) < 1e-3
            assert widest([scores_after(lm, text, ATTENTION) for text in texts]) > 0.05
            assert widest([scores_after(lm, text, POSITIONS) for text in texts]) > 0.05
