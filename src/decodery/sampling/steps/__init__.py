"""The steps of the law, one file each: whatever is in this folder is registered, and nothing lists it. `base.py` says what a
step is."""

from __future__ import annotations

import importlib
import pkgutil

from decodery.sampling.steps.base import PRESETS as PRESETS
from decodery.sampling.steps.base import StatefulStep as StatefulStep
from decodery.sampling.steps.base import Step as Step
from decodery.sampling.steps.base import default_order as default_order
from decodery.sampling.steps.base import register as register
from decodery.sampling.steps.base import step_settings as step_settings
from decodery.sampling.steps.base import steps as steps
from decodery.sampling.steps.base import unregister as unregister

for _file in pkgutil.iter_modules(__path__):
    for _value in list(vars(importlib.import_module(f"{__name__}.{_file.name}")).values()):
        _here = isinstance(_value, type) and _value.__module__ == f"{__name__}.{_file.name}"
        if _here and issubclass(_value, Step) and _value not in (Step, StatefulStep):
            register(_value)
