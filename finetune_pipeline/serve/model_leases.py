"""Reference counts of the models in the engine: one is unloaded after its last lease is released.

    leases.add(model)             # a ModelId, loaded
    leases.acquire(model)         # a request uses it
    leases.retire(model)          # False: still in use; no new lease from now on
    leases.release(model)         # True: the last one of a retired model; unload it
    leases.base_needed(base)      # whether a model on this base is loaded or in use

Not thread-safe: the engine calls it with its lock held.
"""

from __future__ import annotations

from collections import Counter

from finetune_pipeline.serve.generation_request import BaseId, ModelGone, ModelId


class ModelLeases:
    """`loaded` holds the models that may be leased."""

    def __init__(self) -> None:
        self.loaded: set[ModelId] = set()
        self._count: Counter[ModelId] = Counter()
        self._retired: set[ModelId] = set()

    def add(self, model: ModelId) -> None:
        self.loaded.add(model)
        self._retired.discard(model)

    def acquire(self, model: ModelId) -> None:
        """Count one more user. ModelGone when the model is not loaded, or retired."""
        if model not in self.loaded:
            raise ModelGone(model)
        self._count[model] += 1

    def release(self, model: ModelId) -> bool:
        """Count one user less. Returns whether that was the last user of a retired model."""
        self._count[model] -= 1
        if self._count[model] == 0:
            del self._count[model]
            if model in self._retired:
                self._retired.discard(model)
                return True
        return False

    def retire(self, model: ModelId) -> bool:
        """Lease the model no more. Returns whether nothing uses it now."""
        self.loaded.discard(model)
        if self._count[model] == 0:
            return True
        self._retired.add(model)
        return False

    def needed(self, model: ModelId) -> bool:
        """Whether the model was loaded again, or is in use."""
        return model in self.loaded or self._count[model] > 0

    def base_needed(self, base: BaseId) -> bool:
        """Whether a model on this base, or the base itself, is loaded or in use."""
        return any(model.base == base and self.needed(model) for model in {*self.loaded, *self._count})
