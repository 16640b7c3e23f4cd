"""The names of an artifact's folders."""

from __future__ import annotations

import pytest

from finetune_pipeline.records.revisions import newest_first, revision_name, split_name


@pytest.mark.parametrize(("name", "key", "number"), [("3fa9", "3fa9", 1), ("3fa9.2", "3fa9", 2), ("a.b", "a.b", 1)])
def test_a_name_is_a_key_and_a_number(name: str, key: str, number: int) -> None:
    assert split_name(name) == (key, number)
    assert revision_name(key, number) == name


def test_the_last_forced_run_comes_first() -> None:
    assert newest_first(["k", "k.2", "k.10", "k2", "other.3"], "k") == ["k.10", "k.2", "k"]
