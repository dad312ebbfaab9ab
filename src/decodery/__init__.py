"""decodery: one decoding engine for language models.

    import decodery

    lm = decodery.load("smollm2-135m")
    print(lm.generate("The capital of France is", method="token-recycling").text)

Nothing heavy is imported before it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from decodery._version import __version__ as __version__
from decodery.errors import BadInput as BadInput
from decodery.errors import BadParameter as BadParameter
from decodery.errors import BadPrompt as BadPrompt
from decodery.errors import BadSetting as BadSetting
from decodery.errors import DecoderyError as DecoderyError
from decodery.errors import DownloadFailed as DownloadFailed
from decodery.errors import MethodUnavailable as MethodUnavailable
from decodery.errors import ModelNotReadable as ModelNotReadable
from decodery.errors import NotEnoughMemory as NotEnoughMemory
from decodery.errors import NotEnoughSpace as NotEnoughSpace
from decodery.errors import Refused as Refused
from decodery.errors import UnknownMethod as UnknownMethod
from decodery.errors import UnknownModel as UnknownModel

if TYPE_CHECKING:
    from decodery.engine.method import Exactness as Exactness
    from decodery.engine.method import Method as Method
    from decodery.engine.parameters import parameter as parameter
    from decodery.engine.registry import MethodInfo as MethodInfo
    from decodery.engine.registry import methods as methods
    from decodery.engine.registry import register as register
    from decodery.engine.task import Task as Task
    from decodery.integrations.transformers import transformers_generate as transformers_generate
    from decodery.language_model import LanguageModel as LanguageModel
    from decodery.loading import load as load
    from decodery.loading import wrap as wrap
    from decodery.replies import Reply as Reply
    from decodery.replies import Stream as Stream
    from decodery.scoring import Scored as Scored

_LAZY = {
    "Exactness": "decodery.engine.method",
    "Method": "decodery.engine.method",
    "parameter": "decodery.engine.parameters",
    "MethodInfo": "decodery.engine.registry",
    "methods": "decodery.engine.registry",
    "register": "decodery.engine.registry",
    "Task": "decodery.engine.task",
    "transformers_generate": "decodery.integrations.transformers",
    "LanguageModel": "decodery.language_model",
    "Reply": "decodery.replies",
    "Stream": "decodery.replies",
    "Scored": "decodery.scoring",
    "load": "decodery.loading",
    "wrap": "decodery.loading",
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'decodery' has no attribute {name!r}")
    import importlib

    from decodery._lazy import without_collection

    with without_collection():
        value = getattr(importlib.import_module(_LAZY[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
