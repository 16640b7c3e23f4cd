"""Names of an artifact's folders: the key, and for each forced run after the first one a number behind it. Pure.

    3fa9c1…      the first artifact made from these inputs
    3fa9c1….2    a forced run of the same work gave other files (a training never gives the same weights twice)

An artifact that exists is never overwritten: it may be the one behind the endpoint.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

_NAME = re.compile(r"(?P<key>.+?)(?:\.(?P<number>[1-9][0-9]*))?", re.DOTALL)


def split_name(name: str) -> tuple[str, int]:
    """The key and the number of a folder: ("3fa9", 2) of "3fa9.2", ("3fa9", 1) of "3fa9"."""
    found = _NAME.fullmatch(name)
    return (found["key"], int(found["number"] or 1)) if found else (name, 1)


def revision_name(key: str, number: int) -> str:
    return key if number == 1 else f"{key}.{number}"


def newest_first(names: Iterable[str], key: str) -> list[str]:
    """The folders of this key among `names`, the last forced run first."""
    return sorted((name for name in names if split_name(name)[0] == key), key=lambda n: split_name(n)[1], reverse=True)
