"""Verifiers: how much of a draft is kept."""

from decodery.speculative.draft import Draft, Siblings
from decodery.speculative.verifiers.base import TargetLaws as TargetLaws
from decodery.speculative.verifiers.base import Verdict as Verdict
from decodery.speculative.verifiers.base import Verifier as Verifier
from decodery.speculative.verifiers.match import GreedyMatch as GreedyMatch
from decodery.speculative.verifiers.match import SampleThenMatch as SampleThenMatch
from decodery.speculative.verifiers.optimal_multi_draft import GreedySetMatch as GreedySetMatch
from decodery.speculative.verifiers.optimal_multi_draft import TransportPlan as TransportPlan
from decodery.speculative.verifiers.rejection import ChainRejection as ChainRejection
from decodery.speculative.verifiers.rejection import TreeRejection as TreeRejection
from decodery.speculative.verifiers.spectr import KSeq as KSeq


def verifier_for(draft: Draft, greedy: bool) -> Verifier:
    """The verifier that is exact for this draft and accepts the most."""
    if greedy:
        return GreedyMatch()
    if draft.siblings is Siblings.DETERMINISTIC:
        return SampleThenMatch()
    if draft.siblings is Siblings.GREEDY:
        return GreedySetMatch()
    return ChainRejection() if draft.is_chain else TreeRejection()
