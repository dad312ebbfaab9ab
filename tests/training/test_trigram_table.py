"""Counting a table of trigrams: over texts, over the model's own answers, and from the command line."""

from __future__ import annotations

import pytest

from decodery.errors import BadInput
from decodery.speculative.continuations.trigrams import TrigramTable
from decodery.testing import scripted_language_model, story_scorer, toy_language_model
from decodery.training import trigram_table


def test_a_text_is_read_piece_by_piece(tmp_path, monkeypatch):
    path = tmp_path / "text.txt"
    text = "abc\nde\nfghijklmnop\n\nq"
    path.write_text(text)
    lm = scripted_language_model(story_scorer())
    monkeypatch.setattr(trigram_table, "PIECE", 5)
    pieces = list(trigram_table.text_tokens(lm, path))
    assert [token for piece in pieces for token in piece] == lm.encode(text)
    assert max(map(len, pieces)) <= 5
    assert pieces[0] == lm.encode("abc\n")
    with pytest.raises(BadInput, match="cannot be read"):
        list(trigram_table.text_tokens(lm, tmp_path / "none.txt"))


def test_a_table_of_the_model_s_own_answers_drafts_them(tmp_path):
    lm = toy_language_model()
    prompts = [
        f"tell me about {word}" for word in ("tea", "salt", "ice", "ants", "rivers", "glass", "wheat", "bells", "ink")
    ]
    told = []
    table = trigram_table.build(
        lm, trigram_table.own_tokens(lm, prompts, 30, lambda done, total: told.append((done, total))), at_least=1
    )
    assert told == [(8, 9), (9, 9)]
    table.save(tmp_path / "table.npz")
    chat = [{"role": "user", "content": prompts[3]}]
    plain = lm.generate(chat, method="autoregressive", max_new_tokens=30)
    spec = "adaptive-draft-verification(corpus={!r}, delta=0, adapt=False)"
    drafted = lm.generate(chat, method=spec.format(str(tmp_path / "table.npz")), max_new_tokens=30)
    assert drafted.token_ids == plain.token_ids
    assert drafted.stats.acceptance_length > 2


def test_the_command_writes_a_table(tmp_path, monkeypatch, capsys):
    lm = scripted_language_model(story_scorer())
    monkeypatch.setattr(trigram_table, "load", lambda name: lm)
    (tmp_path / "text.txt").write_text("abcabcabd")
    (tmp_path / "prompts.txt").write_text("qq\n\nrr\n")
    output = tmp_path / "table.npz"
    trigram_table.main([str(tmp_path / "text.txt"), "--output", str(output), "--at-least", "1"])
    assert TrigramTable.load(output).row(1) == ([2, 3], pytest.approx([2 / 3, 1 / 3]))
    assert "3 pairs, 4 successors" in capsys.readouterr().err
    trigram_table.main(["--prompts", str(tmp_path / "prompts.txt"), "--output", str(output), "--max-new-tokens", "9"])
    assert "2 of 2 answers" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        trigram_table.main([str(tmp_path / "none.txt"), "--output", str(output)])
    assert stopped.value.code == 2
    assert "cannot be read" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        trigram_table.main(["--output", str(output)])
