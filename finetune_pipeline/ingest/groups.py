"""The group of a row, as a hash: rows of one group are never split across train and test.

    group_of("Jo@Example.com")       # "b2d02ea2b471c631"
    group_of(" jo@example.COM ")     # the same: Unicode NFKC, case folded, single spaces
    group_of("")                     # None: the row belongs to no group

Groups are compared for equality only. A group is often a customer: an e-mail address, a phone number, a name. It is in
every artifact from here to the split, so only its hash leaves this module, whatever the value is: names cannot be found
by patterns. The hash has no key, because artifacts have to be the same on every machine: someone who has a list of
addresses can test which of them are in the data.
"""

from __future__ import annotations

import unicodedata
from typing import Any

from finetune_pipeline.ingest.turns import text_of
from finetune_pipeline.records import content_id


def group_of(value: Any) -> str | None:
    """16 hexadecimal digits for the group that a cell names; None for an empty cell (null, blanks, NaN).

    InvalidRow for Infinity.
    """
    if value is None or value != value:  # NaN: pandas writes it for an empty cell
        return None
    text = " ".join(unicodedata.normalize("NFKC", text_of(value)).casefold().split())
    return content_id("group", text) if text else None
