"""Constrained decoding: only labels, in as few tokens as necessary, the most probable allowed token at each step."""

from __future__ import annotations

from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.inference.generate import Generation, encode, generate, label_choice
from finetune_pipeline.inference.label_choice import LabelChoice
from finetune_pipeline.inference.loading import Loaded

LABELS = ("refund", "refund fee", "late parcel", "late", "cancel order")
SPEC = AnswerFormat(format="label", labels=LABELS)
PROMPTS = {f"r{n}": [{"role": "user", "content": f"where is my parcel {n} " * (n + 1)}] for n in range(12)}


def test_the_tokens_that_continue_some_label_are_allowed() -> None:
    choice = LabelChoice({"refund": [8, 4], "refund fee": [8, 4, 7], "late": [9]}, {2})
    assert choice.allowed([]) == {8, 9}
    assert choice.allowed([8, 4]) == {2, 7}
    assert [choice.stop(ids) for ids in ([], [8], [8, 4], [8, 4, 7], [9])] == [False, False, False, True, True]
    assert choice.label([9]) == "late"
    assert choice.label([8, 4, 2]) == "refund", "the end-of-turn token distinguishes it from the longer label"
    assert choice.label([8, 4, 7]) == "refund fee"


def test_constrained_answers_are_labels_and_shorter_than_free_ones(loaded: Loaded) -> None:
    settings = Generation("zero_shot", 16, batch_size=5)
    free = generate(loaded, PROMPTS, SPEC, settings)
    assert not {answer.text for answer in free} & set(LABELS), (
        "without the constraint, the tiny model generates no label"
    )
    chosen = generate(loaded, PROMPTS, SPEC, settings, choice=label_choice(loaded, LABELS))
    assert len(chosen) == len(PROMPTS)
    assert {answer.text for answer in chosen} <= set(LABELS)
    assert all(answer.finished for answer in chosen)
    assert sum(a.completion_tokens for a in chosen) < sum(a.completion_tokens for a in free) / 2


def test_each_token_is_the_most_probable_allowed_one(loaded: Loaded) -> None:
    import torch

    choice = label_choice(loaded, LABELS)
    for answer in generate(loaded, PROMPTS, SPEC, Generation("zero_shot", 16), choice=choice):
        ids = encode(loaded.tokenizer, PROMPTS[answer.id])
        chosen: list[int] = []
        while not (choice.stop(chosen) or (chosen and chosen[-1] in loaded.eos_ids)):
            with torch.no_grad():
                logits = loaded.model(input_ids=torch.tensor([ids + chosen])).logits[0, -1]
            allowed = sorted(choice.allowed(chosen))
            chosen.append(allowed[int(logits[allowed].argmax())])
        assert choice.label(chosen) == answer.text
