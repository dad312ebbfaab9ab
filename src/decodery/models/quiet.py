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
from unittest import mock

_CHATTY = ("transformers", "huggingface_hub", "accelerate", "peft", "bitsandbytes", "compressed_tensors", "torchao")

# Bars, levels and filters belong to the process, so that two threads would restore each other's.
_ONE_AT_A_TIME = threading.RLock()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the libraries that load models, and give them back the settings that they had. One thread at a time.

    Their bars are all of one kind but heed different settings, or none, so that they are switched off where they are made.
    """
    import tqdm
    from transformers.utils import logging as theirs

    made = tqdm.std.tqdm.__init__

    def silent(bar: Any, *arguments: Any, **settings: Any) -> None:
        made(bar, *arguments, **{**settings, "disable": True})

    with _ONE_AT_A_TIME, warnings.catch_warnings(), mock.patch.object(tqdm.std.tqdm, "__init__", silent):
        warnings.simplefilter("ignore")
        theirs.get_verbosity()  # its first log sets the level of the environment
        loggers = [logging.getLogger(name) for name in _CHATTY]
        levels = [logger.level for logger in loggers]
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
