"""Cache regimes: which rows of prompt and canvas a forward computes anew."""

from decodery.diffusion.caches.base import CacheRegime as CacheRegime
from decodery.diffusion.caches.base import NoCache as NoCache
