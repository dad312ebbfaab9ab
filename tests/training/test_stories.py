"""The stories recipe: beginnings, filter, rows, both networks from end to end, and the models that are shipped."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch

import decodery
from decodery.testing import toy_language_model
from decodery.training import stories, story_texts
from decodery.training.masking import batches
from decodery.training.networks import Shape, SmallLlama
from decodery.training.story_prompts import story_beginnings
from decodery.training.story_rows import (
    END_ID,
    MASK_ID,
    PAD_IDS,
    TOTALS,
    counted_tokens,
    encode_stories,
    story_rows,
    train_tokenizer,
    validation_rows,
)
from decodery.training.story_texts import clean_story, read_stories, write_stories

ARTIFACTS = Path(decodery.__file__).parent / "artifacts"


def made_up_stories(count: int) -> list[str]:
    """Stories without a model: three and more sentences each, all different."""
    found = []
    for number, (_, begin) in enumerate(story_beginnings(count, 7)):
        middle = [f"Then {name} came and brought {word}" for name, word in itertools.product(("Ann", "Bo"), "xyz")]
        front = begin if begin.endswith((".", '"')) else f"{begin} it was so."
        found.append(
            f"{front} {'. '.join(middle[: 3 + number % 4])}. They were glad to have number {'a' * (number % 9)}."
        )
    return found


def test_beginnings_are_varied_and_the_same_for_the_same_seed():
    pairs = story_beginnings(300, 3)
    assert pairs == story_beginnings(300, 3)
    assert pairs[:50] == story_beginnings(50, 3)
    assert pairs != story_beginnings(300, 4)
    begins = [begin for _, begin in pairs]
    assert len(set(begins)) == 300
    assert all("{" not in begin and begin[0].isupper() for begin in begins)
    assert len({begin.split()[0] for begin in begins}) > 15
    assert len({request for request, _ in pairs}) > 2


GOOD = (
    " He looked for it under the bed and behind the door of the kitchen. His mother said, \u201cIt is in the bath.\u201d "
    "So he ran there and was very happy to see it again. Then they had soup together."
)


def test_the_filter_keeps_a_good_story_as_one_line_of_plain_signs():
    story = clean_story("Tom lost a ball.", GOOD.replace(" His", "\n\nHis"))
    assert story == (
        "Tom lost a ball. He looked for it under the bed and behind the door of the kitchen. "
        'His mother said, "It is in the bath." So he ran there and was very happy to see it again. '
        "Then they had soup together."
    )


@pytest.mark.parametrize(
    "bad",
    [
        " In this story we learn to share.",
        " He had 3 balls.",
        " 1. He found a ball.",
        " Tom lost a ball.",
        " He ran ran ran home.",
        " He had to eat and he had to eat and he had to eat and he had to eat.",
        " **He** laughed.",
        " Then a wolf came to kill him.",
        ' She said, "Let us go.',
        " Boll\u00e4 came too.",
        " and so on.",
    ],
)
def test_the_filter_cuts_a_story_where_it_goes_wrong(bad):
    good = clean_story("Tom lost a ball.", GOOD)
    assert clean_story("Tom lost a ball.", GOOD + bad + " Nobody reads this.") in (
        good,
        # Nothing but the open quotation mark is wrong there: it may be closed by what follows.
        None if '"' not in bad else good,
    )
    assert clean_story("Tom lost a ball.", bad + GOOD) is None


def test_an_unfinished_sentence_is_dropped():
    assert clean_story("Tom lost a ball.", f"{GOOD} They went to the") == clean_story("Tom lost a ball.", GOOD)


def test_a_long_story_is_cut_and_a_short_one_dropped():
    names = [f"{first}{second}" for first in "bcdfghklmn" for second in ("a", "e", "i", "o")]
    long = clean_story("It began.", "".join(f" Then little {name} came by and sang with all of us." for name in names))
    assert long is None  # the same four words again and again
    long = clean_story("It began.", "".join(f" So {name} met {name[::-1]}o on way {name}s." for name in names))
    assert long is not None
    assert 110 < len(long.split()) <= story_texts.LONGEST_WORDS
    assert clean_story("It began.", " So it was. It was good.") is None


def test_stories_are_written_in_parts_and_not_twice(tmp_path, monkeypatch):
    monkeypatch.setattr(story_texts, "BATCH", 4)
    monkeypatch.setattr(story_texts, "NEW_TOKENS", 5)
    lm = toy_language_model()
    tokenize = type(lm).tokenize
    # The toy knows no conversations: it is asked with the plain request.
    monkeypatch.setattr(
        type(lm),
        "tokenize",
        lambda self, prompt, tools=None, method=None: (
            self.encode(prompt[0]["content"]) if isinstance(prompt[0], dict) else tokenize(self, prompt)
        ),
    )
    seen = []
    files = write_stories(lm, 10, 1, tmp_path, lambda stage, done, total: seen.append(done))
    assert [path.name for path in files] == ["00000.jsonl", "00001.jsonl", "00002.jsonl"]
    assert seen == [0, 4, 8, 10]
    entries = [json.loads(line) for path in files for line in path.read_text().splitlines()]
    assert [entry["beginning"] for entry in entries] == [begin for _, begin in story_beginnings(10, 1)]
    before = files[1].read_text()
    files[1].unlink()
    files[0].write_text("kept")
    write_stories(lm, 10, 1, tmp_path)
    assert files[0].read_text() == "kept"
    assert files[1].read_text() == before


def test_no_opening_is_read_twice(tmp_path):
    line = json.dumps({"beginning": "Tom lost a ball.", "text": GOOD, "ended": True})
    bad = json.dumps({"beginning": "Tom lost a ball.", "text": " He", "ended": False})
    (tmp_path / "a.jsonl").write_text(f"{line}\n{bad}\n{line}\n")
    assert list(read_stories([tmp_path / "a.jsonl"])) == [clean_story("Tom lost a ball.", GOOD)]


@pytest.fixture(scope="module")
def rows_made():
    texts = made_up_stories(300)
    tokenizer = train_tokenizer(texts, 512)
    return texts, tokenizer, encode_stories(texts, tokenizer)


def test_the_tokenizer_reserves_its_first_ids_and_reads_any_text(rows_made):
    texts, tokenizer, coded = rows_made
    assert tokenizer.get_vocab_size() == 512
    assert [tokenizer.token_to_id(word) for word in ("<mask>", "<end>", "<pad0>", "<pad6>")] == [MASK_ID, END_ID, 2, 8]
    assert len(PAD_IDS) == 7
    for text, story in zip(texts, coded, strict=True):
        assert tokenizer.decode(list(story.tokens)) == text
        assert min(story.tokens) > max(PAD_IDS)
    odd = "Zo\u00eb & \u732b 12"
    assert tokenizer.decode(tokenizer.encode(odd).ids) == odd


def test_sentences_are_found_in_tokens(rows_made):
    texts, tokenizer, coded = rows_made
    for text, story in zip(texts[:60], coded, strict=False):
        pieces = [
            tokenizer.decode(list(story.tokens[a:b])) for a, b in itertools.pairwise((*story.starts, len(story.tokens)))
        ]
        assert "".join(pieces) == text
        assert all(piece.rstrip("\"' ")[-1] in ".!?" for piece in pieces)
        assert tokenizer.decode(list(story.tokens[: story.opening])) == pieces[0].rstrip()


def test_rows_show_windows_of_stories(rows_made):
    _, tokenizer, coded = rows_made
    source = story_rows(coded, 5, 512)
    rows = source(0)
    assert rows == source(0)
    assert rows != source(1)
    lines = {tokenizer.decode(list(story.tokens)) for story in coded}
    openings = ends = 0
    for prompt, ids in rows:
        assert len(ids) in TOTALS
        assert 0 <= prompt <= len(ids) // 2
        stop = ids.index(END_ID) if END_ID in ids else len(ids)
        assert set(ids[stop:]) <= {END_ID}
        text = tokenizer.decode(ids[:stop])
        # With an end the row goes to the end of its story.
        assert any(line.endswith(text) if stop < len(ids) else text in line for line in lines)
        openings += any(line.startswith(text) for line in lines)
        ends += stop < len(ids)
    assert openings > len(rows) / 2
    assert 0 < ends < len(rows)
    assert {prompt == 0 for prompt, _ in rows} == {True, False}


def test_the_rows_of_a_length_fill_whole_batches_and_the_twin_gets_the_same(rows_made):
    _, _, coded = rows_made
    made = batches(story_rows(coded, 2, 512), 512, 2, 3)
    twins = batches(story_rows(coded, 2, 512, whole=True), 512, 2, 3)
    assert {tuple(batch.tokens.shape) for batch in made} <= {(512 // total, total) for total in TOTALS}
    assert len(made) == len(twins) > 10
    for batch, twin in zip(made, twins, strict=True):
        assert torch.equal(batch.tokens, twin.tokens)
        assert not twin.prompts.any()
        assert twin.canvas.all()
        assert batch.visible is None


def test_tokens_are_counted_up_to_the_first_end():
    rows = [(2, [20, 21, 22, 23, END_ID, END_ID]), (1, [20, 21, 22])]
    assert counted_tokens(rows) == 3 + 2


def test_bits_are_those_of_the_uniform_law_for_a_network_that_knows_nothing(rows_made):
    _, _, coded = rows_made
    network = SmallLlama(Shape(512, 16, 1, 2))
    torch.nn.init.zeros_(network.model.embed_tokens.weight)
    rows = validation_rows(coded[:6])
    scale = sum(len(ids) - prompt for prompt, ids in rows) / counted_tokens(rows)
    assert stories.twin_bits(network, rows) == pytest.approx(9 * scale, rel=1e-5)
    bits, error = stories.diffusion_bits(network, rows, 16)
    assert bits == pytest.approx(9 * scale, rel=1e-5)
    assert error < 1e-5


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Both models of a tiny recipe, over texts that no model wrote."""
    folder = tmp_path_factory.mktemp("stories")
    (folder / "texts").mkdir()
    lines = [
        json.dumps(
            {"beginning": begin, "text": f"{GOOD} After that {begin.lower()} It was fun to be {name}.", "ended": True}
        )
        for (_, begin), name in zip(story_beginnings(96, 0), itertools.cycle(("here", "there", "home")), strict=False)
    ]
    (folder / "texts" / "00000.jsonl").write_text("\n".join(lines) + "\n")
    arguments = ["--folder", str(folder), "--artifacts", str(folder / "models"), "--stories", "96", "--held-out", "4"]
    sizes = [
        "--width",
        "32",
        "--layers",
        "1",
        "--heads",
        "2",
        "--vocabulary",
        "400",
        "--steps",
        "100",
        "--batch-tokens",
        "512",
    ]
    stories.main([*arguments, *sizes, "--warmup", "5", "--draws", "8", "--rate", "0.01"])
    return folder / "models"


def test_the_recipe_trains_both_models_and_describes_them(made):
    for name in (stories.DIFFUSION, stories.TWIN):
        card = json.loads((made / name / "card.json").read_text())
        metric = "bits_per_token" if name == stories.TWIN else "bound_in_bits_per_token"
        assert card["metrics"][metric] < math.log2(400) - 1
        assert card["log"][-1]["step"] == 100
        assert card["data"]["validation_stories"] == 4
        assert "--steps 100" in card["command"]
        assert len(card["samples"]["texts"]) == 5
        assert len((made / name / "validation.txt").read_text().splitlines()) == 4
    config = json.loads((made / stories.DIFFUSION / "config.json").read_text())
    assert config["masked_diffusion"]["mask_token_id"] == MASK_ID
    assert "masked_diffusion" not in json.loads((made / stories.TWIN / "config.json").read_text())
    both = [json.loads((made / name / "card.json").read_text()) for name in (stories.DIFFUSION, stories.TWIN)]
    assert both[0]["log"][-1]["tokens"] == both[1]["log"][-1]["tokens"]
    assert both[0]["parameters"] == both[1]["parameters"]


@pytest.mark.parametrize("name", [stories.DIFFUSION, stories.TWIN])
def test_a_shipped_model_is_what_its_card_says(name):
    """Ten held-out stories: as many bits per token as all of them, within four standard errors of the stories."""
    from transformers import AutoTokenizer

    folder, shared = ARTIFACTS / name, ARTIFACTS / stories.DIFFUSION
    card = json.loads((folder / "card.json").read_text())
    network = SmallLlama.read(folder)
    assert sum(weight.numel() for weight in network.parameters()) == card["parameters"]
    texts = (shared / "validation.txt").read_text().splitlines()
    assert len(texts) == card["metrics"]["stories"]
    tokenizer = AutoTokenizer.from_pretrained(shared)
    rows = validation_rows(encode_stories(texts, tokenizer.backend_tokenizer))
    assert counted_tokens(rows) == card["metrics"]["tokens"]
    chosen = rows[:: len(rows) // 10]
    if name == stories.TWIN:
        each = torch.tensor([stories.twin_bits(network, [row]) for row in chosen])
        assert stories.twin_bits(network, rows) == pytest.approx(card["metrics"]["bits_per_token"], abs=0.01)
    else:
        each = torch.tensor([stories.diffusion_bits(network, [row], 8)[0] for row in chosen])
        error = 4 * float(each.std()) / math.sqrt(len(chosen))
        assert float(each.mean()) == pytest.approx(card["metrics"]["bound_in_bits_per_token"], abs=error)
    assert float(each.mean()) < 6  # the law of single tokens has about 8.2


@pytest.mark.parametrize("name", [stories.DIFFUSION, stories.TWIN])
def test_a_shipped_model_loads_with_transformers_and_gives_the_same_logits(name):
    from transformers import AutoModelForCausalLM

    folder = ARTIFACTS / name
    network = SmallLlama.read(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    tokens = torch.tensor([[300, 301, MASK_ID, 400, 401, 402, 500]])
    causal = name == stories.TWIN
    seen = torch.ones(7, 7).tril() if causal else torch.ones(7, 7)
    mask = torch.where(seen.bool(), 0.0, torch.finfo(torch.float32).min)[None, None]
    with torch.no_grad():
        theirs = model(tokens, attention_mask=mask).logits
        ours = network.head(network(tokens, causal=causal))
        assert torch.allclose(ours, theirs, atol=2e-4)
        # Who is seen matters: the first row changes with the last token only where it may look at it.
        changed = tokens.clone()
        changed[0, -1] = 600
        other = network.head(network(changed, causal=causal))
    assert torch.equal(other[:, 0], ours[:, 0]) == causal


def test_samples_are_words_that_are_not_reserved():
    for name in (stories.DIFFUSION, stories.TWIN):
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(ARTIFACTS / stories.DIFFUSION / "tokenizer.json"))
        network = SmallLlama.read(ARTIFACTS / name)
        prompt = tokenizer.encode("Once upon a time").ids
        sample = stories.sample_twin if name == stories.TWIN else stories.sample_diffusion
        ids = sample(network, prompt, 24, 0.7, torch.Generator().manual_seed(1))
        assert len(ids) == 24
        assert not set(ids) & {MASK_ID, *PAD_IDS}
        again = sample(network, prompt, 24, 0.7, torch.Generator().manual_seed(1))
        assert ids == again
