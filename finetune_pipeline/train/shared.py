"""What several trainings of one base model in one process have in common; it is loaded and computed once.

    shared = Shared(load_base(folder, rules))
    setup = assemble(spec, report, shared=shared)      # assembly.py: a training with what is known already
    …
    setup.trainable.release()                   # the base model is as before, for the next training

All of it holds for one base model, method and precision, whatever the learning rate, rank or rows of a training:

- the base model itself, and the token ids of the rows,
- the likelihoods of the rows before training (reference.py), and the states of the general texts (replay.py),
- the outputs of the frozen layers, for as many frozen layers and one shared prefix (packing.py),
- whether the packed forward pass equals the model's own, for a number of tuned layers (forward_check.py).

None of it is of several ranks: a training that shares something computes in one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from finetune_pipeline.records import Reporter
from finetune_pipeline.train import forward_check, packing
from finetune_pipeline.train.distributed import ALONE, Ranks
from finetune_pipeline.train.forward import Forward
from finetune_pipeline.train.method import Base, Trainable
from finetune_pipeline.train.packing import FrozenStates, PackedForward
from finetune_pipeline.train.padding import PaddedForward
from finetune_pipeline.train.tokenize import TokenizedExample

FrozenKey = tuple[int | None, tuple[int, ...]]  # tuned layers, shared prefix


@dataclass
class Shared:
    """`rows`: tokenized, by split; `texts`: states by the id of a general text; `likelihoods`: by row; `several`:
    whether more than one training follows, so that the base model is needed again."""

    base: Base
    several: bool = False
    rows: dict[str, list[TokenizedExample]] = field(default_factory=dict)
    texts: dict[str, Any] = field(default_factory=dict)
    likelihoods: dict[str, list[float]] = field(default_factory=dict)
    _frozen: dict[FrozenKey, FrozenStates] = field(default_factory=dict)  # the last used one is the last
    _forwards: dict[int | None, str] = field(default_factory=dict)
    _checkpointed: set[int | None] = field(default_factory=set)  # tuned layers of a forward pass that was compared

    def forward(
        self,
        trainable: Trainable,
        layers: int | None,
        prefix: Sequence[int],
        rows: Sequence[TokenizedExample],
        report: Reporter,
        ranks: Ranks = ALONE,
    ) -> Forward:
        """The forward pass for `layers` tuned layers; compared with the model's own where that was not done yet.
        `ranks`: over which the weights will be spread. The first alone compares for all: until then each has the whole
        model in its host's memory, and a comparison takes twice its gradients."""
        model, cache = trainable.model, self.frozen(layers, prefix)
        if layers not in self._forwards:
            chosen = forward_check.choose(model, trainable.weights, prefix, rows, report) if ranks.is_main else None
            packed = ranks.max(float(chosen is not None and chosen.name == PackedForward.name))
            self._forwards[layers] = PackedForward.name if packed else PaddedForward.name
        packs = self._forwards[layers] == PackedForward.name
        return PackedForward(model, prefix, cache) if packs else PaddedForward(model)

    def require_same(
        self, forward: Forward, trainable: Trainable, layers: int | None, rows: Sequence[TokenizedExample]
    ) -> None:
        """ModelError when a checkpointed forward pass differs from the model's own; compared once for `layers`."""
        if layers not in self._checkpointed:
            forward_check.require_same(forward, trainable.weights, rows)
            self._checkpointed.add(layers)

    def frozen(self, layers: int | None, prefix: Sequence[int]) -> FrozenStates:
        """The outputs of the layers below `layers` tuned ones. Those of other numbers of layers are kept as well, as
        long as all of them take no more than CACHE_BYTES."""
        key = (layers, tuple(prefix))
        found = self._frozen.pop(key, FrozenStates())
        while self._frozen and sum(each.size for each in self._frozen.values()) + found.size > packing.CACHE_BYTES:
            del self._frozen[next(iter(self._frozen))]
        self._frozen[key] = found
        return found
