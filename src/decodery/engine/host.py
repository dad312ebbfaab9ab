"""What requests and methods need of the model that they run on."""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from decodery.engine.background import Background
    from decodery.engine.cost import CostCurve
    from decodery.engine.text import Decoder
    from decodery.models.scorer import Scorer


class Host(Protocol):
    """What a request needs from the model it runs on. `LanguageModel` is one; tests make small ones."""

    network: Scorer
    tokenizer: Decoder
    stop_ids: tuple[int, ...]
    """Tokens that end the model's output."""
    memory: dict[Hashable, Any]
    """What methods keep between requests."""
    background: Background
    """What methods do between passes."""

    def cost(self, network: Scorer) -> CostCurve: ...

    def encode(self, text: str) -> list[int]: ...

    def companion(self, name: str) -> Host:
        """Another model that methods use beside this one, by the name or folder that it is loaded from."""
        ...
