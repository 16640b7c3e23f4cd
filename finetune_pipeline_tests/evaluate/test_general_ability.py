"""The general texts, and how the tuned model's loss on them is compared with that of its base."""

from __future__ import annotations

from finetune_pipeline.evaluate import general_ability


def test_general_texts_are_many_and_different() -> None:
    rows = general_ability.prompts()
    assert len(rows) >= 200
    assert len({row["id"] for row in rows}) == len({row["prompt"] for row in rows}) == len(rows)
    assert len({row["kind"] for row in rows}) >= 10
    assert all(row["completion"].strip() for row in rows)


def test_the_relative_change_refers_to_the_base() -> None:
    rows = general_ability.compared({"a": 2.0, "b": 2.0}, {"a": 2.0, "b": 3.0})
    assert general_ability.summary(rows) == {"texts": 2, "base": 2.0, "tuned": 2.5, "rise": 0.25}
