"""What the endpoint needs of whatever computes its answers: the embedded engine, or a provider's API.

    engine.load("9be0…", adapter_folder)        # engine.Engine: weights; provider_engine.ProviderEngine: the record
    with engine.lease("9be0…"): ...

The supervisor and the routing table know nothing else of an engine. A request is turned into text by
`generation.Generation` (token by token) or `provider_generation.ProviderGeneration` (forwarded).
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol


class ServingEngine(Protocol):
    """Every method may be called from any thread."""

    @property
    def busy(self) -> tuple[int, int]:
        """How many requests run, and how many wait for a slot."""

    @property
    def is_alive(self) -> bool:
        """Whether a thread of the engine has not ended."""

    @property
    def steps(self) -> int:
        """A count that grows while work goes on: shows a waiting client that it does."""

    def load(self, adapter: str, folder: Path) -> None:
        """Make the adapter in `folder` answer under its content hash."""

    def unload(self, adapter: str) -> None:
        """Stop answering with the adapter after its last lease is released."""

    def lease(self, adapter: str | None) -> AbstractContextManager[None]:
        """Keep the adapter within the block. AdapterGone when it is not loaded any more."""

    def abort(self) -> None:
        """Accept no more requests, and end all with an error at once."""

    def stop(self, timeout: float = 2.0) -> None:
        """`abort`, and end every thread; waits up to `timeout` seconds."""
