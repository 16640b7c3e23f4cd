"""Few-shot examples: which rows are selected, and where they stand in the prompt."""

from __future__ import annotations

from finetune_pipeline.baseline.prompts import fixed_shots, nearest_shots, prompts
from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.records import Example, Message
from finetune_pipeline_tests.artifacts import example

SPEC = AnswerFormat(format="label", labels=("refund", "delivery", "account"))
TRAIN = [
    example("t1", "I want my money back", "refund"),
    example("t2", "give me back my money", "refund"),
    example("t3", "refund me the kettle", "refund"),
    example("t4", "where is my parcel", "delivery"),
    example("t5", "the parcel is late", "delivery"),
    example("t6", "I cannot log in", "account"),
]
TESTS = [example("q1", "my parcel never came", "delivery"), example("q2", "log in fails", "account")]


def test_fixed_examples_have_every_slice_before_any_slice_twice() -> None:
    shots = fixed_shots(TRAIN, SPEC, 4)
    assert {row.completion for row in shots[:3]} == {"refund", "delivery", "account"}
    assert len({row.id for row in shots}) == 4
    assert shots == fixed_shots(TRAIN, SPEC, 4)
    assert any(fixed_shots(TRAIN, SPEC, 4, seed) != shots for seed in range(5))
    assert len(fixed_shots(TRAIN, SPEC, 99)) == len(TRAIN)


def test_the_most_similar_example_comes_last() -> None:
    nearest = nearest_shots(TRAIN, TESTS, 2)
    assert {row.id for row in nearest["q1"]} == {"t4", "t5"}
    assert nearest["q2"][-1].id == "t6"


def test_examples_are_earlier_turns_after_the_system_prompt() -> None:
    chat = prompts("few_shot", TRAIN, TESTS, "Sort it.", SPEC, 2)["q1"]
    assert [turn["role"] for turn in chat] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert chat[-1]["content"] == "my parcel never came"
    assert prompts("zero_shot", TRAIN, TESTS, "", SPEC, 2)["q1"] == [
        {"role": "user", "content": "my parcel never came"}
    ]


def test_a_rows_own_system_message_stays_first() -> None:
    row = Example("o", (Message("system", "Own."), Message("user", "hi"), Message("assistant", "account")), "s", "o")
    chat = prompts("few_shot", TRAIN, [row], "Sort it.", SPEC, 1)["o"]
    assert [turn["role"] for turn in chat] == ["system", "user", "assistant", "user"]
    assert chat[0]["content"] == "Own."


def test_the_least_similar_examples_are_dropped_when_the_prompt_is_too_long() -> None:
    full = prompts("few_shot_retrieved", TRAIN, TESTS, "", SPEC, 3)["q1"]
    short = prompts("few_shot_retrieved", TRAIN, TESTS, "", SPEC, 3, fits=lambda chat: len(chat) <= 5)["q1"]
    assert short == full[2:]
    assert len(prompts("few_shot_retrieved", TRAIN, TESTS, "", SPEC, 3, fits=lambda chat: False)["q1"]) == 1
