"""Exit adapters: their formula and file, and what they make of drafts."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from decodery.engine.settings import Settings
from decodery.errors import MethodUnavailable
from decodery.models.forward import Forward, Layers
from decodery.speculative.del_.drafter import ExitDrafter
from decodery.speculative.del_.exits import ExitAdapters, adapted
from decodery.testing import toy_language_model
from decodery.testing.outputs import new_request


class TestAdapters:
    @pytest.fixture
    def trained(self, tmp_path):
        lm = toy_language_model(seed=1, layers=4)
        generator = torch.Generator().manual_seed(0)
        weights = {
            exit: (torch.randn(8, 32, generator=generator), torch.randn(32, 8, generator=generator) * 0.1)
            for exit in (1, 3)
        }
        tokens = torch.arange(0, 260, 2)
        ExitAdapters(weights, tokens, lm.network.fingerprint(), {}).write(tmp_path)
        return lm, tmp_path, ExitAdapters.read(tmp_path)

    def test_they_come_back_as_they_were(self, trained):
        _, _, adapters = trained
        assert adapters.exits == (1, 3)
        assert adapters.tokens.tolist() == list(range(0, 260, 2))

    def test_an_adapter_of_nothing_changes_nothing(self):
        rows = torch.randn(3, 32)
        torch.testing.assert_close(adapted(rows, torch.randn(8, 32), torch.zeros(32, 8)), rows)

    def test_an_adapter_by_hand(self):
        rows, down, up = torch.randn(2, 6), torch.randn(4, 6), torch.randn(6, 4)
        for row, found in zip(rows, adapted(rows, down, up), strict=True):
            size = float(row.norm()) / math.sqrt(6)
            inner = down @ (row / size)
            expected = row + size * (up @ (inner * torch.sigmoid(inner)))
            torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)

    def test_drafts_are_the_adapted_rows_likeliest_spoken_token(self, trained, monkeypatch):
        lm, folder, adapters = trained
        drafts: list[tuple[list[int], list[int]]] = []
        original = ExitDrafter.observe

        def observe(self, round):
            original(self, round)
            drafts.append((list(round.tokens), list(round.draft.tokens)))

        monkeypatch.setattr(ExitDrafter, "observe", observe)
        spec = f"del(adapters='{folder}', exit=3, length=2)"
        plain = lm.generate("hello", method="autoregressive", max_new_tokens=20)
        assert lm.generate("hello", method=spec, max_new_tokens=20).token_ids == plain.token_ids
        head = lm.network.head()
        for text, drafted in drafts[:5]:
            for place, token in enumerate(drafted):
                ask = Forward(lm.network.new_sequence(), [*text, *drafted[:place]], layers=Layers(0, 3), taps=(2,))
                [scores] = lm.network.run([ask])
                row = head(adapters.apply(3, scores.hidden[2][-1:]))[0]
                assert token % 2 == 0, "only every second token is spoken"
                assert float(row[token]) == pytest.approx(float(row[::2].max()), abs=1e-4)

    @pytest.mark.parametrize("temperature", [0.0, 1.0])
    def test_all_that_is_spoken_may_be_forbidden(self, trained, temperature):
        lm, folder, _ = trained
        bias = {token: -float("inf") for token in range(0, 260, 2)}
        settings: dict[str, Any] = {"max_new_tokens": 12, "logit_bias": bias, "temperature": temperature, "seed": 1}
        plain = lm.generate("hello", method="autoregressive", **settings)
        reply = lm.generate("hello", method=f"del(adapters='{folder}', bypass=False)", **settings)
        assert reply.stats.drafted == 0
        assert reply.token_ids == plain.token_ids

    def test_exits_without_an_adapter(self, trained, monkeypatch):
        """Adapters that were asked for are refused; those that ship with decodery step back."""
        lm, folder, _ = trained
        with pytest.raises(MethodUnavailable, match=r"1\+3, not for 2"):
            lm.generate("a", method=f"del(adapters='{folder}', exit=2)", max_new_tokens=2)
        monkeypatch.setattr("decodery.speculative.del_.exits.shipped", lambda fingerprint: folder)
        for exit, bent in ((3, True), (2, False)):
            request, method = new_request(lm, f"del(exit={exit})", [5], Settings(seed=0))
            assert (method.drafter(request)._speech.adapters is not None) == bent

    def test_of_another_model_they_are_refused(self, trained):
        _, folder, _ = trained
        other = toy_language_model(seed=2, layers=4)
        with pytest.raises(MethodUnavailable, match="trained for the model"):
            other.generate("a", method=f"del(adapters='{folder}')", max_new_tokens=2)
