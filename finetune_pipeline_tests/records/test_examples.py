"""A row as JSON, and the hash of its content, with and without a rejected completion."""

from __future__ import annotations

from dataclasses import replace

from finetune_pipeline.records import Example, dumps
from finetune_pipeline_tests.artifacts import example

ROW = example("9f1c", "where is it?", "It is on its way.")
PAIR = replace(ROW, rejected="No idea.")


def test_a_row_is_read_as_it_was_written() -> None:
    assert Example.from_json(ROW.to_json()) == ROW
    assert Example.from_json(PAIR.to_json()) == PAIR


def test_a_row_without_a_rejected_completion_is_written_as_before_there_were_any() -> None:
    assert dumps(ROW.to_json()) == (
        '{"id": "9f1c", "messages": [{"role": "user", "content": "where is it?"}, '
        '{"role": "assistant", "content": "It is on its way."}], "source": "test", "origin": "test.csv:9f1c", '
        '"group": null}'
    )
    assert ROW.content_hash == "68ba23f28b8039c6"


def test_the_content_hash_is_about_the_rejected_completion_too() -> None:
    hashes = {ROW.content_hash, PAIR.content_hash, replace(ROW, rejected="").content_hash}
    assert len(hashes) == 3
