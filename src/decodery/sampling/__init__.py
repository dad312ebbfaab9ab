"""From logits to a token: the processed law and the chance that draws from it. A leaf: tensors only.

Nothing heavy is imported before it is used: the command line reads the settings of the steps without torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from decodery.sampling.law import DEFAULT_ORDER as DEFAULT_ORDER
    from decodery.sampling.law import Law as Law
    from decodery.sampling.law_settings import LawSettings as LawSettings
    from decodery.sampling.noise import Chance as Chance
    from decodery.sampling.noise import Noise as Noise
    from decodery.sampling.noise import Stage as Stage
    from decodery.sampling.prefix import Prefix as Prefix
    from decodery.sampling.processors import NamedProcessor as NamedProcessor
    from decodery.sampling.processors import register_processor as register_processor
    from decodery.sampling.settings import Setting as Setting
    from decodery.sampling.settings import setting as setting
    from decodery.sampling.steps.base import StatefulStep as StatefulStep
    from decodery.sampling.steps.base import Step as Step
    from decodery.sampling.steps.base import register as register
    from decodery.sampling.structured.rules import TextRule as TextRule
    from decodery.sampling.structured.rules import register_rule as register_rule

_LAZY = {
    "DEFAULT_ORDER": "law",
    "Law": "law",
    "LawSettings": "law_settings",
    "Chance": "noise",
    "Noise": "noise",
    "Stage": "noise",
    "Prefix": "prefix",
    "NamedProcessor": "processors",
    "register_processor": "processors",
    "TextRule": "structured.rules",
    "register_rule": "structured.rules",
    "Setting": "settings",
    "setting": "settings",
    "StatefulStep": "steps.base",
    "Step": "steps.base",
    "register": "steps.base",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
