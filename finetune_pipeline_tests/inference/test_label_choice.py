"""A prompted model can only choose among the labels, takes no more tokens than the choice needs, and takes the most
probable way at each token."""

from __future__ import annotations

from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.inference.generate import Generation, encode, generate, label_choice
from finetune_pipeline.inference.label_choice import LabelChoice
from finetune_pipeline.inference.loading import Loaded

LABELS = ("refund", "refund fee", "late parcel", "late", "cancel order")
SPEC = AnswerFormat(format="label", labels=LABELS)
PROMPTS = {f"r{n}": [{"role": "user", "content": f"where is my parcel {n} " * (n + 1)}] for n in range(12)}


def test_a_choice_allows_what_some_label_goes_on_with() -> None:
    choice = LabelChoice({"refund": [8, 4], "refund fee": [8, 4, 7], "late": [9]}, {2})
    assert choice.allowed([]) == {8, 9}
    assert choice.allowed([8, 4]) == {2, 7}
    assert [choice.stop(ids) for ids in ([], [8], [8, 4], [8, 4, 7], [9])] == [False, False, False, True, True]
    assert choice.label([9]) == "late"
    assert choice.label([8, 4, 2]) == "refund", "the end mark tells it from the longer label"
    assert choice.label([8, 4, 7]) == "refund fee"


def test_a_prompted_model_gives_labels_only_where_a_free_one_rambles(loaded: Loaded) -> None:
    how = Generation("zero_shot", 16, batch_size=5)
    free = generate(loaded, PROMPTS, SPEC, how)
    assert not {answer.text for answer in free} & set(LABELS), "the tiny model knows no label by itself"
    chosen = generate(loaded, PROMPTS, SPEC, how, choice=label_choice(loaded, LABELS))
    assert len(chosen) == len(PROMPTS)
    assert {answer.text for answer in chosen} <= set(LABELS)
    assert all(answer.finished for answer in chosen)
    assert sum(a.completion_tokens for a in chosen) < sum(a.completion_tokens for a in free) / 2


def test_the_choice_is_the_most_probable_token_at_each_place(loaded: Loaded) -> None:
    import torch

    choice = label_choice(loaded, LABELS)
    for answer in generate(loaded, PROMPTS, SPEC, Generation("zero_shot", 16), choice=choice):
        ids = encode(loaded.tokenizer, PROMPTS[answer.id])
        said: list[int] = []
        while not (choice.stop(said) or (said and said[-1] in loaded.eos_ids)):
            with torch.no_grad():
                logits = loaded.model(input_ids=torch.tensor([ids + said])).logits[0, -1]
            allowed = sorted(choice.allowed(said))
            said.append(allowed[int(logits[allowed].argmax())])
        assert choice.label(said) == answer.text
