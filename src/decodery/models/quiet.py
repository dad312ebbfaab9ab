"""Loading without a word of other libraries: no progress bars, warnings or logs of theirs on the terminal.

What they would say there and matters (weights left random, parts of the configuration passed over) is asked of them
otherwise, and becomes an error of ours.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import warnings
from collections.abc import Iterator
from typing import Any

_CHATTY = ("transformers", "huggingface_hub", "accelerate", "peft")

# Bars, levels and filters belong to the process, so that two threads would restore each other's.
_ONE_AT_A_TIME = threading.RLock()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the libraries that load models, and give them back the settings that they had. One thread at a time."""
    from huggingface_hub import utils
    from transformers.utils import logging as theirs

    with _ONE_AT_A_TIME, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs.get_verbosity()  # its first log sets the level of the environment
        bars: Any = utils  # typed by hand: the names below are public, but not marked so
        hub_shown, shown = not bars.are_progress_bars_disabled(), theirs.is_progress_bar_enabled()
        loggers = [logging.getLogger(name) for name in _CHATTY]
        levels = [logger.level for logger in loggers]
        theirs.disable_progress_bar()
        bars.disable_progress_bars()
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
            if shown:
                theirs.enable_progress_bar()
            if hub_shown:
                bars.enable_progress_bars()
            else:  # transformers switches both
                bars.disable_progress_bars()
