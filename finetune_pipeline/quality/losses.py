"""How many rows were lost before the gate: dropped by cleaning, or unreadable in their source.

losses = Losses.of(task, kept=742, dropped=103, read={"shop": Reading(877, 17)})
losses.share_dropped      # 120 of 862: 0.139
losses.unreadable         # {"shop": 0.0194}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from finetune_pipeline.config import Task

SHARE_DROPPED = "share_dropped"
UNREADABLE = "unreadable: "  # and the source's name


@dataclass(frozen=True, slots=True)
class Reading:
    """What became of one source: `rows` were found in its files, `unreadable` of them were dropped when reading."""

    rows: int
    unreadable: int

    @property
    def share(self) -> float:
        return self.unreadable / self.rows if self.rows else 0.0


@dataclass(frozen=True, slots=True)
class Losses:
    """The losses as shares, 0.0 to 1.0: of all rows, and of each source what could not be read; with the limits of the
    sources."""

    share_dropped: float
    unreadable: Mapping[str, float]
    limits: Mapping[str, float]

    @staticmethod
    def of(task: Task, kept: int, dropped: int, read: Mapping[str, Reading]) -> Losses:
        """`kept` rows are left, `dropped` were dropped by cleaning, `read` is about each source by its name."""
        lost = dropped + sum(reading.unreadable for reading in read.values())
        share = lost / (lost + kept) if kept else 1.0
        limits = {source.label: source.max_unreadable for source in task.sources}
        return Losses(share, {name: read.get(name, Reading(0, 0)).share for name in limits}, limits)

    def columns(self) -> dict[str, float]:
        """As columns of the table that Great Expectations checks."""
        return {SHARE_DROPPED: self.share_dropped} | {UNREADABLE + name: it for name, it in self.unreadable.items()}
