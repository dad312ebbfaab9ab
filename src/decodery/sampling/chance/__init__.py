"""Sources of random draws, one file each: whatever is in this folder is registered, and nothing lists it."""

from __future__ import annotations

import importlib
import pkgutil

from decodery.sampling.chance.addressed import Addressed as Addressed
from decodery.sampling.chance.arithmetic import Arithmetic as Arithmetic
from decodery.sampling.chance.base import Chances as Chances
from decodery.sampling.chance.base import DrawnSample as DrawnSample
from decodery.sampling.chance.base import Source as Source
from decodery.sampling.chance.base import register as register
from decodery.sampling.chance.base import sources as sources
from decodery.sampling.chance.base import unregister as unregister
from decodery.sampling.chance.gumbel import GumbelRace as GumbelRace
from decodery.sampling.chance.keyed import Keyed as Keyed
from decodery.sampling.chance.qmcpy import LowDiscrepancy as LowDiscrepancy
from decodery.sampling.chance.replay import Recording as Recording
from decodery.sampling.chance.replay import Replay as Replay
from decodery.sampling.chance.structural import PlacedNoise as PlacedNoise
from decodery.sampling.chance.structural import Structural as Structural
from decodery.sampling.chance.structural import posterior_gumbels as posterior_gumbels
from decodery.sampling.chance.watermark import Watermarked as Watermarked

for _file in pkgutil.iter_modules(__path__):
    for _value in list(vars(importlib.import_module(f"{__name__}.{_file.name}")).values()):
        _here = isinstance(_value, type) and _value.__module__ == f"{__name__}.{_file.name}"
        if _here and issubclass(_value, Source) and _value is not Source and _value.by_name:
            register(_value)
