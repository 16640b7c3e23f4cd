"""The prompts that the tuned model has to beat: what a good engineer would try before training anything. Pure.

    zero_shot    the task's system prompt and the question
    few_shot     the same few training examples before every question, as earlier turns of the conversation
    few_shot_retrieved    for each question the training examples most like it, the most similar last

The fixed examples go round the slices, so that a prompt shows as many different answers as it can; which ones is drawn
by a seed. Similarity is that of character n-grams (TF-IDF, cosine): it needs no model, forgives spelling, and is hard
to beat for short texts. Fixed examples are the same for all rows, so their tokens are computed once
(inference/decoder.py).

A prompt that would not fit into the model's context loses its first, least similar examples until it does.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.records import Example

Chat = list[dict[str, str]]
SEED = 17  # of the fixed examples: the best of several draws would be a test set used for choosing


def with_shots(example: Example, system: str, shots: Sequence[Example]) -> Chat:
    """The row's prompt, with question and answer of each of `shots` as earlier turns after the system prompt."""
    chat = example.chat(system)
    head = 1 if chat and chat[0]["role"] == "system" else 0
    turns = [
        {"role": role, "content": text}
        for shot in shots
        for role, text in (("user", shot.prompt), ("assistant", shot.completion))
    ]
    return chat[:head] + turns + chat[head:]


def fixed_shots(train: Sequence[Example], spec: AnswerFormat, count: int, seed: int = SEED) -> list[Example]:
    """`count` training rows, one slice after the other, in an order drawn by `seed`."""
    dice = random.Random(seed)
    slices: dict[str, list[Example]] = defaultdict(list)
    for row in train:
        slices[spec.slice_of(row.completion)].append(row)
    names = sorted(slices)
    dice.shuffle(names)
    for name in names:
        dice.shuffle(slices[name])
    deepest = max((len(rows) for rows in slices.values()), default=0)
    in_turn = [slices[name][i] for i in range(deepest) for name in names if i < len(slices[name])]
    return in_turn[:count]


def nearest_shots(train: Sequence[Example], tests: Sequence[Example], count: int) -> dict[str, list[Example]]:
    """For each test row's id the `count` training rows whose questions are most like its own, the most similar last."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectors = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True)
    known = vectors.fit_transform([row.prompt for row in train])
    near: dict[str, list[Example]] = {}
    for start in range(0, len(tests), 256):  # rows at a time: the similarities are a dense matrix
        some = tests[start : start + 256]
        similarity = (vectors.transform([row.prompt for row in some]) @ known.T).toarray()
        for row, line in zip(some, similarity, strict=True):
            best = np.argsort(-line, kind="stable")[:count][::-1]
            near[row.id] = [train[i] for i in best]
    return near


def prompts(
    variant: str,
    train: Sequence[Example],
    tests: Sequence[Example],
    system: str,
    spec: AnswerFormat,
    shots: int,
    fits: Callable[[Chat], bool] = lambda chat: True,
) -> Mapping[str, Chat]:
    """The prompt of every test row (by id) for a variant; tuned has the prompt of zero_shot."""
    if variant == "few_shot":
        fixed = fixed_shots(train, spec, shots)
        chosen = {row.id: fixed for row in tests}
    elif variant == "few_shot_retrieved":
        chosen = nearest_shots(train, tests, shots)
    else:
        chosen = {row.id: [] for row in tests}
    return {row.id: _fitting(row, system, chosen[row.id], fits) for row in tests}


def _fitting(row: Example, system: str, shots: Sequence[Example], fits: Callable[[Chat], bool]) -> Chat:
    for dropped in range(len(shots)):
        chat = with_shots(row, system, shots[dropped:])
        if fits(chat):
            return chat
    return with_shots(row, system, ())
