"""Every raw row has one outcome; anything else is an error that names the rows."""

from __future__ import annotations

import pytest

from finetune_pipeline.errors import DataError
from finetune_pipeline.records import Drop
from finetune_pipeline.split.accounting import account


def drop(id_: str, reason: str = "html", stage: str = "clean") -> Drop:
    return Drop(id_, f"test.csv:{id_}", stage, reason)


def test_rows_are_counted_by_split_stage_and_reason() -> None:
    drops = [drop("d"), drop("e"), drop("f", "expert-rejected", "review")]
    result = account("abcdef", {"train": ["a"], "validation": ["b"], "test": ["c"]}, drops)
    assert result.raw == 6
    assert result.splits == {"train": 1, "validation": 1, "test": 1}
    assert result.dropped == {"clean": {"html": 2}, "review": {"expert-rejected": 1}}


def test_a_reason_that_two_stages_share_is_summed() -> None:
    drops = [drop("b", "near-duplicate"), drop("c", "near-duplicate", "review"), drop("d", "near-duplicate", "review")]
    result = account("abcd", {"train": ["a"]}, drops)
    assert (result.dropped_by_reason, result.dropped_rows) == ({"near-duplicate": 3}, 3)


def test_a_row_that_a_source_holds_twice_has_two_outcomes() -> None:
    assert account(["a", "a"], {"train": ["a"]}, [drop("a", "exact-duplicate")]).dropped_rows == 1


def test_a_row_without_an_outcome_is_an_error_that_names_it() -> None:
    with pytest.raises(DataError, match=r"2 rows have no outcome.*\(lost1, lost2\)"):
        account(["a", "lost1", "lost2"], {"train": ["a"]}, [])


def test_a_row_with_two_outcomes_is_an_error_that_names_it() -> None:
    with pytest.raises(DataError, match=r"too many outcomes.*\(a\)"):
        account(["a", "b"], {"train": ["a", "b"]}, [drop("a")])


def test_an_outcome_without_a_raw_row_is_an_error_that_names_it() -> None:
    with pytest.raises(DataError, match=r"too many outcomes.*\(unknown\)"):
        account(["a"], {"train": ["a"], "test": ["unknown"]}, [])
