"""From logits to a token: the processed law and the noise that draws from it. A leaf: tensors only."""

from decodery.sampling.law import DEFAULT_ORDER as DEFAULT_ORDER
from decodery.sampling.law import Law as Law
from decodery.sampling.law import LawSettings as LawSettings
from decodery.sampling.noise import Chance as Chance
from decodery.sampling.noise import Noise as Noise
from decodery.sampling.noise import Stage as Stage
