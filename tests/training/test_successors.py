"""The recipe of successor tables: what the model holds likely after its own text, averaged."""

from __future__ import annotations

import json

import numpy as np

from decodery.speculative.continuations.successors import SuccessorTable
from decodery.testing import toy_language_model
from decodery.training import successors
from decodery.training.answers import AnswerRecipe, read_answers, write_answers
from decodery.training.successors import table_of


def test_the_table_is_that_of_the_model_s_own_shares(tmp_path):
    lm = toy_language_model(seed=1, layers=1, hidden=16)
    answers = write_answers(lm, AnswerRecipe(prompts=2, answers=1, new_tokens=6, batch=2), tmp_path)
    table, tokens = table_of(lm, answers, "of a toy")
    assert tokens == sum(len(answer.output) for answer in answers)
    answer = answers[0]
    reply = lm.generate(answer.prompt, "autoregressive", max_new_tokens=6, logprobs=successors.KEPT)
    expected, _ = table_of(lm, [answer], "of a toy")
    assert reply.token_ids == answer.output
    contexts = [
        [*answer.prompt, *answer.output][:place][-3:]
        for place in range(len(answer.prompt), len(answer.prompt) + len(answer.output))
    ]
    ids = [[token for token, _ in entry.top[: successors.KEPT]] for entry in reply.logprobs]
    shares = np.exp([[value for _, value in entry.top[: successors.KEPT]] for entry in reply.logprobs])
    made = SuccessorTable.average(
        np.array(contexts), np.array(ids), shares.astype(np.float32), lm.network.vocabulary, "of a toy"
    )
    for one, other in zip(made.runs, expected.runs, strict=True):
        assert (one.keys == other.keys).all()
    assert table.tokenizer == "of a toy"


def test_the_command_writes_answers_and_reads_those_of_others(tmp_path, monkeypatch):
    lm = toy_language_model(seed=1, layers=1, hidden=16)
    monkeypatch.setattr("decodery.loading.load", lambda name: lm)
    write_answers(lm, AnswerRecipe(prompts=2, answers=1, new_tokens=5, seed=4), tmp_path / "others")
    told = ["--work", str(tmp_path / "work"), "--artifact", str(tmp_path / "table.npz"), "--prompts", "3"]
    told += ["--new-tokens", "4", "--answers", "1", "--texts-of", str(tmp_path / "others")]
    successors.main(told)
    card = json.loads((tmp_path / "table.json").read_text())
    written = read_answers(tmp_path / "work") + read_answers(tmp_path / "others")
    assert card["tokens"] == sum(len(answer.output) for answer in written)
    assert SuccessorTable.read(tmp_path / "table.npz").tokenizer == card["tokenizer"]
