"""Which training rows a training uses: all, a share of them, or those of some sources; a function of seed and ids.

selected(rows, share=0.5, without=("web",), seed=13)      # half of the rows of the other sources, in their order

A larger share holds every row of a smaller one, so that two trainings differ in what is added and not in the draw.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence

from finetune_pipeline.records import Example, content_id


def selected(rows: Sequence[Example], share: float, without: Collection[str], seed: int) -> list[Example]:
    """`share` (0 to 1] of the rows whose source is not in `without`, rounded up."""
    left = [row for row in rows if row.source not in without]
    if share >= 1:
        return left
    drawn = sorted({row.id for row in left}, key=lambda id_: content_id(f"{seed}/share", id_))
    kept = {*drawn[: math.ceil(share * len(drawn))]}
    return [row for row in left if row.id in kept]
