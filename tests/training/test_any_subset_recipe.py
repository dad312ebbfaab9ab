"""The recipe of any-subset models: orders, who sees whom, the joint loss, and the model from end to end."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path

import pytest
import torch

import decodery
from decodery.any_order.joint_density import joint_density
from decodery.loading import load, load_tokenizer
from decodery.models.kinds import Kind
from decodery.training import any_subset
from decodery.training.networks import Shape, SmallLlama
from decodery.training.orders import Ordered, costs, ordered, shares, visible
from decodery.training.story_prompts import story_beginnings
from decodery.training.story_rows import END_ID, MASK_ID, PAD_IDS, Story, encode_stories, validation_rows

ARTIFACT = Path(decodery.__file__).parent / "artifacts" / "any-subset-stories"


def _seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_bin_of_shares_has_a_row():
    found = shares(8, 0.5, 0.9, _seeded())
    assert sorted(((found - 0.5) / 0.4 * 8).long().tolist()) == list(range(8))
    assert found.tolist() != sorted(found.tolist())
    assert not torch.equal(found, shares(8, 0.5, 0.9, _seeded(1)))


def test_given_positions_come_first_and_all_ascend():
    order = ordered(10, torch.tensor([0.3, 0.8, 0.0, 1.0]), _seeded())
    assert order.given.tolist() == [7, 2, 9, 0]
    for given, positions in zip(order.given.tolist(), order.positions.tolist(), strict=True):
        assert sorted(positions) == list(range(10))
        assert positions[:given] == sorted(positions[:given])
        assert positions[given:] == sorted(positions[given:])
    assert order.positions[1].tolist() != ordered(10, torch.tensor([0.3, 0.8]), _seeded(5)).positions[1].tolist()
    assert order.targets.sum(dim=1).tolist() == [3, 8, 1, 10]


@pytest.mark.parametrize("joint", [True, False])
def test_who_sees_whom(joint):
    order = Ordered(torch.tensor([[1, 0, 2, 3], [0, 2, 3, 1]]), torch.tensor([1, 3]))
    seen = visible(order, joint)[:, 0]
    assert seen.shape == (2, 7, 7)
    expected = {
        0: [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 4], [0, 1, 5] if joint else [0, 5], [0, 1, 2, 6] if joint else [0, 6]],
        1: [[0, 1, 2], [0, 1, 2], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 4], [5], [6]],
    }  # fmt: skip
    for row, lists in expected.items():
        assert [[column for column, there in enumerate(one) if there] for one in seen[row].tolist()] == lists


def test_the_share_is_warmed_up():
    recipe = any_subset.AnySubsetRecipe(first_share=0.2, low_share=0.4, high_share=0.8, share_steps=10)
    assert recipe.share_at(0) == (0.2, 0.2)
    assert recipe.share_at(5) == pytest.approx((0.3, 0.5))
    assert recipe.share_at(10) == recipe.share_at(99) == pytest.approx((0.4, 0.8))
    assert any_subset.AnySubsetRecipe(share_steps=0).share_at(0) == pytest.approx((0.5, 0.95))


def test_the_loss_is_the_density_that_the_engine_finds(tmp_path):
    """Of a checkpoint that is written and loaded: the same masks, positions and queries on both sides."""
    network = SmallLlama(Shape(40, 16, 2, 2), seed=1)
    for weight in network.parameters():
        if weight.dim() == 2:
            weight.data *= 8
    described = {"mask_token_id": MASK_ID, "end_token_ids": [END_ID], "pad_token_ids": list(PAD_IDS), "canvas": 8}
    network.write(tmp_path / "model", torch.float32, any_order=described, max_position_embeddings=32)
    (tmp_path / "model" / "tokenizer.json").write_bytes(
        (ARTIFACT.parent / "diffusion-stories/tokenizer.json").read_bytes()
    )
    tokens = torch.randint(10, 40, (3, 9), generator=_seeded())
    order = ordered(9, torch.tensor([0.9, 0.5, 0.3]), _seeded(2))
    lm = _loaded(tmp_path / "model")
    assert lm.network.kinds is Kind.ANY_ORDER
    for joint in (True, False):
        found = costs(network, tokens, order, MASK_ID, joint).double()
        assert bool(found[~order.targets].eq(0).all())
        for row, text in enumerate(tokens.tolist()):
            hidden = order.positions[row, int(order.given[row]) :].tolist()
            theirs = lm.run(joint_density(lm, text, hidden, joint))
            # The engine leaves reserved tokens out of the law, which the loss leaves in.
            left_out = lm.run(_reserved(lm, text, hidden, joint))
            ours = -found[row, : len(hidden)]
            assert torch.allclose(theirs, ours - (-left_out.exp()).log1p(), atol=1e-4)


def _loaded(folder):
    lm = load(ARTIFACT.parent / "diffusion-stories")  # its tokenizer knows more tokens than this network
    from decodery.language_model import LanguageModel
    from decodery.models.masked_diffusion import MaskedDiffusion, read_config
    from decodery.models.paths import network_for
    from decodery.models.reading import read_model

    config = read_config(folder)
    network = network_for(read_model(folder, config, torch.float32), "small", False, bidirectional=True)
    return LanguageModel(network, lm.tokenizer, (END_ID,), diffusion=MaskedDiffusion.of(config))


def _reserved(lm, text, hidden, joint):
    """The log mass of reserved tokens at hidden positions."""
    from decodery.any_order.order import DecodingOrder

    order = DecodingOrder(sorted({*range(len(text))} - {*hidden}), hidden)
    ranks = range(order.given, len(text))
    scores = yield order.forward(
        lm.network.new_sequence(), [text[place] for place in order.positions], ranks, MASK_ID, joint
    )
    return scores.logits.double().log_softmax(1)[:, list(lm.diffusion.reserved)].logsumexp(1)


def _texts(folder: Path, count: int = 96) -> None:
    (folder / "texts").mkdir(parents=True)
    good = (
        "He looked for it under the bed and behind the door of the kitchen. His mother said that it was in the bath. "
        "So he ran there and was very happy to see it again. Then they had soup together."
    )
    lines = [
        json.dumps({"beginning": begin, "text": f" {good} After that {begin.lower()} It was {name}.", "ended": True})
        for (_, begin), name in zip(story_beginnings(count, 0), itertools.cycle(("here", "there")), strict=False)
    ]
    (folder / "texts" / "00000.jsonl").write_text("\n".join(lines) + "\n")


SMALL = ("--stories", "96", "--batch-tokens", "512", "--warmup", "2", "--share-steps", "2")


def test_the_recipe_goes_on_from_a_masked_model(tmp_path, monkeypatch, capsys):
    start = tmp_path / "models" / "small-start"
    SmallLlama(Shape(2048, 16, 1, 2)).write(start)
    for name in ("tokenizer.json", "validation.txt"):
        (start / name).write_bytes((ARTIFACT.parent / "diffusion-stories" / name).read_bytes())
    lines = (start / "validation.txt").read_text().splitlines()[:6]
    (start / "validation.txt").write_text("\n".join(lines))
    monkeypatch.setattr(any_subset, "resolve", lambda name: tmp_path / "models" / name)
    _texts(tmp_path / "work")
    artifact = tmp_path / "models" / "made"
    given = ("--folder", str(tmp_path / "work"), "--artifact", str(artifact), *SMALL, "--start", "small-start")
    any_subset.main([*given, "--steps", "6"])
    config, card = (json.loads((artifact / name).read_text()) for name in ("config.json", "card.json"))
    assert config["any_order"] == {
        "mask_token_id": MASK_ID, "end_token_ids": [END_ID], "pad_token_ids": list(PAD_IDS), "canvas": any_subset.CANVAS,
    }  # fmt: skip
    assert config["max_position_embeddings"] == 128
    assert config["tokenizer_folder"] == "small-start"
    assert not (artifact / "tokenizer.json").exists()
    assert "--steps 6" in card["command"]
    assert card["recipe"]["start"] == "small-start"
    assert card["data"]["validation_stories"] == 6
    assert {"joint", "parallel"} == set(card["metrics"]["95_percent"])
    lm = load(artifact)
    assert lm.diffusion.any_order
    assert lm.network.context == 128
    assert len(lm.generate("Tom was sad.<mask><mask> He ran.", seed=1).token_ids) > 2
    with pytest.raises(SystemExit):
        any_subset.main([*given, "--steps", "7"])
    assert "another recipe" in capsys.readouterr().err


def test_held_out_stories_are_not_trained_on(tmp_path):
    _texts(tmp_path / "work")
    everything = any_subset.written(any_subset.Corpus(stories=96), 0, tmp_path / "work")
    start = tmp_path / "start"
    start.mkdir()
    (start / "tokenizer.json").write_bytes((ARTIFACT.parent / "diffusion-stories/tokenizer.json").read_bytes())
    (start / "validation.txt").write_text("\n".join(everything[:5]) + "\n")
    data = any_subset.going_on(start, any_subset.Corpus(stories=96), 0, tmp_path / "work", None)
    assert len(data.validation) == 5
    assert len(data.training) == len(everything) - 5
    assert {story.tokens for story in data.training}.isdisjoint({story.tokens for story in data.validation})


def test_the_shipped_model_is_what_its_card_says():
    """Twenty held-out stories: as many bits as all of them, within four standard errors; and the joint law knows more than
    that of a draft, and than how often tokens come."""
    card = json.loads((ARTIFACT / "card.json").read_text())
    network = SmallLlama.read(ARTIFACT)
    assert sum(weight.numel() for weight in network.parameters()) == card["parameters"]
    lines = (ARTIFACT.parent / "diffusion-stories" / "validation.txt").read_text().splitlines()
    assert len(lines) == card["metrics"]["stories"]
    rows = validation_rows(encode_stories(lines[::10], load_tokenizer("any-subset-stories").backend_tokenizer))
    for name, hidden in (("behind_the_first_sentence", None), ("95_percent", 0.95), ("50_percent", 0.5)):
        each = torch.tensor([any_subset.bits(network, [row], hidden) for row in rows])
        told = card["metrics"][name]
        assert float(each.mean()) == pytest.approx(told["joint"], abs=4 * float(each.std()) / len(rows) ** 0.5)
        assert told["joint"] < min(told["parallel"], card["metrics"]["unigram"])


def test_bits_of_a_network_that_knows_nothing_are_those_of_the_uniform_law():
    network = SmallLlama(Shape(64, 16, 1, 2))
    torch.nn.init.zeros_(network.model.embed_tokens.weight)
    rows = [(2, [*range(20, 30)]), (3, [*range(30, 46)]), (1, [*range(40, 50)])]
    for hidden in (None, 0.5):
        assert any_subset.bits(network, rows, hidden) == pytest.approx(6.0, rel=1e-5)
    stories = [Story((20, 20, 21), 1, (0,))]
    expected = -(3 * math.log2(3 / 67) + math.log2(2 / 67) + 4 * math.log2(1 / 67)) / 8
    assert any_subset.unigram_bits(stories, [(1, [9, 20, 20, 20, 21]), (0, [1, 2, 3, 4])], 64) == pytest.approx(
        expected
    )


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--start", str(ARTIFACT.parent / "diffusion-lists")], "holds no validation.txt"),
        (["--width", "64"], "are those of diffusion-stories"),
        (["--vocabulary", "300"], "are those of diffusion-stories"),
    ],
)
def test_what_does_not_go_together_is_refused(given, said, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        any_subset.main(["--folder", str(tmp_path), "--artifact", str(tmp_path / "made"), *given])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_the_recipe_trains_from_scratch(tmp_path):
    _texts(tmp_path)
    artifact = tmp_path / "made"
    sizes = (
        "--width",
        "32",
        "--layers",
        "1",
        "--heads",
        "2",
        "--vocabulary",
        "400",
        "--held-out",
        "4",
        "--rate",
        "0.01",
    )
    any_subset.main(
        ["--folder", str(tmp_path), "--artifact", str(artifact), *SMALL, *sizes, "--steps", "60", "--start", ""]
    )
    card = json.loads((artifact / "card.json").read_text())
    assert (artifact / "tokenizer.json").exists()
    assert card["metrics"]["95_percent"]["joint"] < card["metrics"]["unigram"]
    assert card["metrics"]["95_percent"]["joint"] < card["metrics"]["95_percent"]["parallel"]
    assert [entry["step"] for entry in card["log"]] == [20, 40, 60]
    assert card["log"][-1]["loss"] < card["log"][0]["loss"]
