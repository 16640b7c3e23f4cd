"""The prompts of the baselines: what an engineer tries before training a model.

    zero_shot             the task's system prompt and the row's prompt
    few_shot              the same few training examples before every prompt, as earlier turns of the conversation
    few_shot_retrieved    for each prompt the training examples most similar to it, the most similar last

The fixed examples are taken from the slices in turn, so that a prompt shows as many different completions as it can; a
seed selects them. Similarity is the cosine of character n-gram TF-IDF vectors: it needs no model, tolerates spelling
errors, and is a strong retriever for short texts. Fixed examples are the same for all rows, so their tokens are
computed once (inference/decoder.py).

A prompt that does not fit into the model's context drops its first, least similar examples until it fits.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

from finetune_pipeline.baseline.variants import FEW_SHOT, FEW_SHOT_RETRIEVED, ZERO_SHOT
from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.records import Example

PROMPTED = (ZERO_SHOT, FEW_SHOT, FEW_SHOT_RETRIEVED)  # the variants of this module, from simple to complex
Chat = list[dict[str, str]]
SEED = 17  # of the fixed examples. One draw: to keep the best of several would be to select on the test set
ROWS_PER_BLOCK = 256  # test rows whose similarities [rows, training rows] are a dense matrix at the same time


def with_shots(example: Example, system: str, shots: Sequence[Example]) -> Chat:
    """The row's prompt, with prompt and completion of each of `shots` as earlier turns after the system prompt."""
    chat = example.chat(system)
    head = 1 if chat and chat[0]["role"] == "system" else 0
    turns = [
        {"role": role, "content": text}
        for shot in shots
        for role, text in (("user", shot.prompt), ("assistant", shot.completion))
    ]
    return chat[:head] + turns + chat[head:]


def fixed_shots(train: Sequence[Example], spec: AnswerFormat, count: int, seed: int = SEED) -> list[Example]:
    """`count` training rows, one from each slice in turn, in an order that `seed` determines."""
    rng = random.Random(seed)
    slices: dict[str, list[Example]] = defaultdict(list)
    for row in train:
        slices[spec.slice_of(row.completion)].append(row)
    names = sorted(slices)
    rng.shuffle(names)
    for name in names:
        rng.shuffle(slices[name])
    deepest = max((len(rows) for rows in slices.values()), default=0)
    in_turn = [slices[name][i] for i in range(deepest) for name in names if i < len(slices[name])]
    return in_turn[:count]


def nearest_shots(train: Sequence[Example], tests: Sequence[Example], count: int) -> dict[str, list[Example]]:
    """Test row id -> the `count` training rows whose prompts are most similar to its own, the most similar last."""
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(analyzer="char_wb", ngram_range=(3, 5), sublinear_tf=True)
    train_vectors = vectorizer.fit_transform([row.prompt for row in train])
    nearest: dict[str, list[Example]] = {}
    for start in range(0, len(tests), ROWS_PER_BLOCK):
        block = tests[start : start + ROWS_PER_BLOCK]
        similarity = (vectorizer.transform([row.prompt for row in block]) @ train_vectors.T).toarray()
        for row, similarities in zip(block, similarity, strict=True):
            best = np.argsort(-similarities, kind="stable")[:count][::-1]
            nearest[row.id] = [train[i] for i in best]
    return nearest


def prompts(
    variant: str,
    train: Sequence[Example],
    tests: Sequence[Example],
    system: str,
    spec: AnswerFormat,
    shots: int,
    fits: Callable[[Chat], bool] = lambda chat: True,
) -> Mapping[str, Chat]:
    """Test row id -> its prompt for a variant. A variant that is not in PROMPTED (the tuned model, the live version)
    has the prompt of zero_shot. `fits` says whether a prompt fits into the model's context."""
    if variant == FEW_SHOT:
        fixed = fixed_shots(train, spec, shots)
        selected = {row.id: fixed for row in tests}
    elif variant == FEW_SHOT_RETRIEVED:
        selected = nearest_shots(train, tests, shots)
    else:
        selected = {row.id: [] for row in tests}
    return {row.id: _longest_that_fits(row, system, selected[row.id], fits) for row in tests}


def _longest_that_fits(row: Example, system: str, shots: Sequence[Example], fits: Callable[[Chat], bool]) -> Chat:
    for dropped in range(len(shots)):
        chat = with_shots(row, system, shots[dropped:])
        if fits(chat):
            return chat
    return with_shots(row, system, ())
