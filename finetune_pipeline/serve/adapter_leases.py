"""Reference counts of the adapters on a model: an adapter is unloaded after its last lease is released.

    leases.add("9be0…")             # loaded
    leases.acquire("9be0…")         # a request uses it
    leases.retire("9be0…")          # False: still in use; no new lease from now on
    leases.release("9be0…")         # True: the last one of a retired adapter; unload it

Not thread-safe: the engine calls it with its lock held.
"""

from __future__ import annotations

from collections import Counter

from finetune_pipeline.serve.generation_request import AdapterGone


class AdapterLeases:
    """`loaded` holds the adapters that may be leased."""

    def __init__(self) -> None:
        self.loaded: set[str] = set()
        self._count: Counter[str] = Counter()
        self._retired: set[str] = set()

    def add(self, adapter: str) -> None:
        self.loaded.add(adapter)
        self._retired.discard(adapter)

    def acquire(self, adapter: str) -> None:
        """Count one more user. AdapterGone when the adapter is not loaded, or retired."""
        if adapter not in self.loaded:
            raise AdapterGone(adapter)
        self._count[adapter] += 1

    def release(self, adapter: str) -> bool:
        """Count one user less. Returns whether that was the last user of a retired adapter."""
        self._count[adapter] -= 1
        if self._count[adapter] == 0 and adapter in self._retired:
            self._retired.discard(adapter)
            return True
        return False

    def retire(self, adapter: str) -> bool:
        """Lease the adapter no more. Returns whether nothing uses it now."""
        self.loaded.discard(adapter)
        if self._count[adapter] == 0:
            return True
        self._retired.add(adapter)
        return False

    def needed(self, adapter: str) -> bool:
        """Whether the adapter was loaded again, or is in use."""
        return adapter in self.loaded or self._count[adapter] > 0
