"""Memory is set aside for as many nodes as a draft may have: never fewer than are drafted, and no more where that is known."""

from __future__ import annotations

import pytest

from decodery.engine.events import Drafted
from decodery.engine.registry import method as as_method
from decodery.engine.settings import Settings
from decodery.testing import SmallLanguageModel, scripted_language_model, story_scorer
from decodery.testing.outputs import new_request

REACHED = {
    "prompt-lookup(length=4, adapt=False)": 4,
    "suffix-automaton(length=6, adapt=False)": 6,
    "draft-model(length=3, draft=other)": 3,
    "spectr(drafts=2, length=3, draft=other)": 6,
    "optimal-multi-draft(widths=3x1x1, draft=other)": 9,
    "optimal-multi-draft(widths=2x2, draft=other, mode=without-replacement)": 6,
    "recursive-speculative-decoding(width=2, length=3, draft=other)": 6,
    "recursive-speculative-decoding(tree=branching, branching=3x2, draft=other)": 9,
}
BOUNDED = (
    "suffix-automaton(length=3, auxiliary=token-recycling, threshold=9, adapt=False)",
    "token-recycling(nodes=12, k=4)",
    "cascade(nodes=9)",
    "approximate-match-lookup(nodes=7, length=5, policy=none)",
    "adaptive-draft-verification(adapt=False, choices=6, prefixes=4)",
    "swift(bypass=False, max_steps=2, top_k=2, stop_threshold=0, context_window=3)",
    "del(bypass=False, max_draft=4, exits=2+3)",
)


def _model() -> SmallLanguageModel:
    scorers = [story_scorer(), story_scorer(surprise=0.5, name="other")]
    for scorer in scorers:
        scorer.layers = 7
    return scripted_language_model(scorers[0], drafter=scorers[1])


@pytest.mark.parametrize("spec", [*REACHED, *BOUNDED])
def test_no_draft_has_more_nodes_than_its_method_says(spec: str) -> None:
    most = 0
    for temperature in (0.0, 1.5):
        lm = _model()
        for seed in range(4):
            prompt = [0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2]
            reply = lm.generate(prompt, spec, temperature=temperature, seed=seed, max_new_tokens=40)
            most = max([most, *(len(event.tokens) for event in reply.events if isinstance(event, Drafted))])
    method = as_method(spec)
    assert 0 < most <= method.most_nodes()
    if spec in REACHED:
        assert most == method.most_nodes() == REACHED[spec]
    request, _ = new_request(lm, method, prompt, Settings(max_new_tokens=40, seed=0))
    assert method.caches(request)[0] == (lm.network, len(prompt) + 40 + method.most_nodes())


def test_an_automaton_alone_has_no_tree_of_an_auxiliary_drafter() -> None:
    both = as_method("suffix-automaton(auxiliary=token-recycling)")
    assert both.most_nodes() == as_method("token-recycling").most_nodes()
    assert as_method("suffix-automaton").most_nodes() == 40
    assert as_method("suffix-automaton(auxiliary=token-recycling, length=200)").most_nodes() == 200
