"""The transport problem behind multi-draft verification: how much of a set of drafts any exact verifier can accept.

A verifier couples the drafted tokens X_1 … X_n with a token Y of the target's law p. The most that can be accepted is the
largest Pr(Y in {X_1 … X_n}) over all couplings. It depends on how the drafts were drawn, and is a linear program with as
many rows as there are drafts; for the usual draft laws it collapses to a scan. All of it in float64.
"""

from decodery.speculative.transport.attained import acceptance_of_test as acceptance_of_test
from decodery.speculative.transport.attained import alpha_kseq as alpha_kseq
from decodery.speculative.transport.attained import alpha_rrs_wor as alpha_rrs_wor
from decodery.speculative.transport.attained import alpha_rrs_wr as alpha_rrs_wr
from decodery.speculative.transport.attained import rho_star as rho_star
from decodery.speculative.transport.attained import rrs_wor_samples as rrs_wor_samples
from decodery.speculative.transport.optimum import alpha_star as alpha_star
from decodery.speculative.transport.optimum import alpha_stars as alpha_stars
from decodery.speculative.transport.plans import Coupling as Coupling
from decodery.speculative.transport.plans import alpha_by_subsets as alpha_by_subsets
from decodery.speculative.transport.plans import best_coupling as best_coupling
from decodery.speculative.transport.plans import set_law as set_law
