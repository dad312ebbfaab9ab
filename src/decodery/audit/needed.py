"""The libraries that the audit takes its statistics from, or one sentence where they are missing."""

from __future__ import annotations

import importlib
from typing import Any

from decodery.errors import MethodUnavailable


def statistics(module: str) -> Any:
    """A module of scikit-learn or statsmodels. Raises MethodUnavailable."""
    try:
        return importlib.import_module(module)
    except ImportError:
        raise MethodUnavailable(
            f"the audit needs {module.split('.')[0]}, which is not installed: pip install 'decodery[audit]'."
        ) from None
