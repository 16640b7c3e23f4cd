"""Several processes train one model: each computes its share of every batch, and gradients are summed.

    with joined() as ranks:                              # one process: every method does nothing
        ranks.broadcast(weights)                         # the same initial weights everywhere
        rows = ranks.share(batch, lengths)               # this rank's rows
        ...                                              # loss of the rows, divided by the tokens of the whole batch
        ranks.sum_gradients(weights)                     # now as if one process had computed the whole batch
        loss, = ranks.sum([loss])
        if ranks.any(canceled): ...                      # every rank stops before the same step

The gradients of the trainable weights alone travel, in one message after the last backward pass of a batch: for an
adapter that is a hundredth of the model. torch's DistributedDataParallel sums while a backward pass runs, which needs
one forward and one backward call of a wrapped module; a batch here is several calls, of a custom forward pass.

Only the order of summation differs from one process. torch's elastic agent (backends/node.py) starts the processes and
sets RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE; gloo connects processors, NCCL GPUs.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

from finetune_pipeline.backends.node import STORE
from finetune_pipeline.errors import JobCanceled, TrainingFailed
from finetune_pipeline.records import Reporter

Row = TypeVar("Row")
Part = TypeVar("Part")
TIMEOUT = timedelta(hours=1)  # of one exchange: rank 0 may write a large checkpoint, on a slow disk, before the next


class Ranks:
    """The processes of a training; this class itself is that of a single process, and does nothing."""

    rank = 0
    size = 1
    size_here = 1  # of them on this machine
    sharded = False  # whether each rank holds a part of the weights (sharding.py), and not all of them

    @property
    def device(self) -> Any:
        """The device of this rank, a torch.device."""
        import torch

        return torch.device("cuda" if torch.cuda.is_available() else "cpu")

    @property
    def is_main(self) -> bool:
        """Whether this process writes: events, checkpoints, metrics, the result."""
        return self.rank == 0

    def sum_gradients(self, weights: Iterable[Any]) -> None:
        """Replace each weight's gradient by the sum of those of all ranks. A rank without a gradient counts as zero;
        where no rank has one, it stays None."""

    def sum(self, values: Sequence[float]) -> list[float]:
        """The sums over all ranks (fp64)."""
        return list(values)

    def max(self, value: float) -> float:
        """The largest value of all ranks, for instance of their numbers of micro-batches."""
        return value

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return self.sum([float(flag)])[0] > 0

    def canceled(self, report: Reporter) -> bool:
        """Whether the job was canceled, as far as any rank knows: then all of them stop before the same step."""
        try:
            report.alive()
        except JobCanceled:
            return self.any(True)
        return self.any(False)

    def even(self, parts: Sequence[Part], filler: Part) -> list[tuple[Part, bool]]:
        """This rank's micro-batches, each with whether it counts. With sharded weights every forward and backward pass
        is an exchange: a rank with fewer parts than another computes `filler`, which does not count, as often."""
        missing = int(self.max(len(parts))) - len(parts) if self.sharded else 0
        return [*((part, True) for part in parts), *((filler, False),) * missing]

    def barrier(self) -> None:
        """Wait until every rank has come here."""

    @contextmanager
    def first(self) -> Iterator[None]:
        """A block that the first rank leaves before the others enter it."""
        if not self.is_main:
            self.barrier()
        yield
        if self.is_main:
            self.barrier()

    def broadcast(self, tensors: Iterable[Any]) -> None:
        """Give every rank the values of rank 0."""

    def share(self, rows: Sequence[Row], tokens: Sequence[int]) -> list[Row]:
        """This rank's rows of a batch, in their order; the ranks get about equally many tokens. `tokens`: of each row.
        Fewer rows than ranks leave some ranks without any."""
        return [rows[index] for index in assignment(tokens, self.size)[self.rank]]

    def require_agreement(self, step: int, weights: Mapping[str, Any]) -> None:
        """TrainingFailed unless all ranks are at the same step and, if each holds all of them, have the same weights,
        bit by bit. Reads all weights: for now and then."""


ALONE = Ranks()  # a single process


def assignment(tokens: Sequence[int], size: int) -> list[list[int]]:
    """The indices of each rank's rows, ascending: the longest first, each to the rank with the fewest tokens so far
    (Graham, Bounds on multiprocessing timing anomalies, 1969: at most a third above the optimum)."""
    loads, shares = [0] * size, [[] for _ in range(size)]  # type: tuple[list[int], list[list[int]]]
    for index in sorted(range(len(tokens)), key=lambda index: (-tokens[index], index)):
        lightest = loads.index(min(loads))
        loads[lightest] += tokens[index]
        shares[lightest].append(index)
    return [sorted(share) for share in shares]


class ProcessGroup(Ranks):
    """Several processes, over torch's default process group."""

    def __init__(self, device: Any) -> None:
        import torch.distributed as dist

        self._dist, self._device = dist, device  # type: Any, Any
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self.size_here = int(os.environ["LOCAL_WORLD_SIZE"])

    @property
    def device(self) -> Any:
        return self._device

    def max(self, value: float) -> float:
        import torch

        largest = torch.tensor([value], dtype=torch.float64, device=self._device)
        self._dist.all_reduce(largest, self._dist.ReduceOp.MAX)
        return float(largest)

    def sum_gradients(self, weights: Iterable[Any]) -> None:
        import torch

        listed = list(weights)
        sizes = [weight.numel() for weight in listed]
        present = torch.tensor([float(weight.grad is not None) for weight in listed], device=self._device)
        flat = torch.zeros(sum(sizes) + len(sizes), device=self._device)  # fp32, as the gradients of trainable weights
        parts = flat.split([*sizes, len(sizes)])
        parts[-1].copy_(present)
        for weight, part in zip(listed, parts[:-1], strict=True):
            if weight.grad is not None:
                part.copy_(weight.grad.flatten())
        self._dist.all_reduce(flat)
        for weight, part, ranks in zip(listed, parts[:-1], parts[-1].tolist(), strict=True):
            if ranks:
                weight.grad = part.view_as(weight).to(weight.dtype)

    def sum(self, values: Sequence[float]) -> list[float]:
        import torch

        summed = torch.tensor(list(values), dtype=torch.float64, device=self._device)
        self._dist.all_reduce(summed)
        numbers: list[float] = summed.tolist()
        return numbers

    def barrier(self) -> None:
        self.sum([0.0])  # a collective that waits for its result, on every backend

    def broadcast(self, tensors: Iterable[Any]) -> None:
        import torch

        by_dtype: dict[Any, list[Any]] = {}
        for tensor in tensors:
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
        with torch.no_grad():
            for listed in by_dtype.values():
                flat = torch.cat([tensor.detach().flatten() for tensor in listed])
                self._dist.broadcast(flat, src=0)
                for tensor, part in zip(listed, flat.split([each.numel() for each in listed]), strict=True):
                    tensor.copy_(part.view_as(tensor))

    def require_agreement(self, step: int, weights: Mapping[str, Any]) -> None:
        import torch

        own = torch.tensor([step, 0 if self.sharded else _hash(weights)], dtype=torch.int64, device=self._device)
        gathered = [torch.empty_like(own) for _ in range(self.size)]
        self._dist.all_gather(gathered, own)
        states = [tuple(each.tolist()) for each in gathered]
        if len(set(states)) > 1:
            steps = {state[0] for state in states}
            what = f"steps {sorted(steps)}" if len(steps) > 1 else f"step {step} with different weights"
            raise TrainingFailed(
                f"the {self.size} processes of the training are at {what}",
                "run again: it resumes from the last checkpoint; use machines with the same versions and GPUs",
            )


def _hash(weights: Mapping[str, Any]) -> int:
    """63 bits of the hash of names and bytes."""
    import torch

    digest = hashlib.sha256()
    for name in sorted(weights):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().flatten().view(torch.uint8).numpy().tobytes())
    return int.from_bytes(digest.digest()[:8], "big") >> 1


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that torch's elastic agent started with this one; without it, this process alone. Sets the current
    CUDA device to LOCAL_RANK, so that "cuda" means this rank's GPU."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    import torch
    import torch.distributed as dist

    gpu = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if gpu else torch.device("cpu")
    if gpu:
        torch.cuda.set_device(device)
    rank, size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(
        "nccl" if gpu else "gloo",
        timeout=TIMEOUT,
        **({"store": _file_store(size), "rank": rank, "world_size": size} if STORE in os.environ else {}),
        **({"device_id": device} if gpu else {}),
    )
    try:
        yield ProcessGroup(device)
    finally:
        dist.destroy_process_group()


def _file_store(size: int) -> Any:
    """The ranks of one machine find each other through a private file, a new one for each start of the job."""
    from torch.distributed import FileStore

    return FileStore(f"{os.environ[STORE]}-{os.environ['TORCHELASTIC_RESTART_COUNT']}", size)
