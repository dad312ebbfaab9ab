"""Hamming distances of a pattern of tokens to every alignment of a text.

The problem variants of Chan, Jin, Vassilevska Williams and Xu, "Faster Algorithms for Text-to-Pattern Hamming Distances",
arXiv 2310.13174, solved with classical and hashed algorithms: exact, k-bounded, (1 + eps)-approximate and streaming. The
paper's asymptotics are not reproduced: its sumset lemma with bit-packed transforms and its equality products are theory.

Everywhere: `text` [n] and `pattern` [m] are token ids (any integers); D[i] is the number of places j < m where
pattern[j] != text[i + j], for i = 0 .. n - m. Where n < m there is no alignment and the result is empty.
"""

from decodery.speculative.approximate_match_lookup.matching.bounded import NgramIndex as NgramIndex
from decodery.speculative.approximate_match_lookup.matching.bounded import jumped as jumped
from decodery.speculative.approximate_match_lookup.matching.bounded import k_bounded as k_bounded
from decodery.speculative.approximate_match_lookup.matching.distances import direct as direct
from decodery.speculative.approximate_match_lookup.matching.distances import heavy_light as heavy_light
from decodery.speculative.approximate_match_lookup.matching.hashed import approximate as approximate
from decodery.speculative.approximate_match_lookup.matching.hashed import hashed_bounded as hashed_bounded
from decodery.speculative.approximate_match_lookup.matching.streaming import Lags as Lags
