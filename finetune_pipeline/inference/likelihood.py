"""How probable a model finds given answers: mean negative log likelihood per token (nats), the base of two measures.

    losses(loaded, {"fact-01": ([{"role": "user", "content": "Why is the sky blue?"}], "Sunlight contains ...")})

Used for general ability (does the tuned model find ordinary text less probable than its base?) and for memorization
(does it find the rows it was trained on more probable than others?). The end-of-turn mark is not counted: it is the
first thing every tuning learns, and says nothing about text.

Rows are computed without padding, and what all prompts begin with is computed once (inference/attention.py). With
`bf16` the matrix products are in bf16, in contrast to answers: a mean over many tokens is the same to a thousandth.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from finetune_pipeline.inference.attention_limits import longest_row
from finetune_pipeline.inference.batched_forward import BatchedModel, PrefillSequence
from finetune_pipeline.inference.generate import Messages, encode
from finetune_pipeline.inference.loading import Loaded
from finetune_pipeline.inference.prefix import common_prefix
from finetune_pipeline.models.device import autocast
from finetune_pipeline.records import Reporter, Silent

PIECE_TOKENS = 512  # rows computed together: a processor is at its full speed, and logits stay small


def losses(
    loaded: Loaded,
    rows: Mapping[str, tuple[Messages, str]],
    what: str = "losses",
    report: Reporter | None = None,
    bf16: bool = False,
) -> dict[str, float]:
    """For each id (messages up to the question, answer): the mean negative log likelihood of the answer's tokens."""
    report = report or Silent()
    prompts = {key: encode(loaded.tokenizer, messages) for key, (messages, _) in rows.items()}
    answers = {
        key: list(loaded.tokenizer(answer, add_special_tokens=False)["input_ids"]) for key, (_, answer) in rows.items()
    }
    result: dict[str, float] = {}
    with autocast(bf16):
        model = BatchedModel(loaded.model, common_prefix(list(prompts.values())))
        for piece in _pieces([key for key in rows if answers[key]], prompts, answers):
            report.alive()
            result |= dict(zip(piece, _piece(model, [(prompts[key], answers[key]) for key in piece]), strict=True))
            report.progress(what, len(result), len(rows))
    return result


def fitting(
    loaded: Loaded, rows: Mapping[str, tuple[Messages, str]], what: str, report: Reporter
) -> dict[str, tuple[Messages, str]]:
    """The rows that the model can read as a whole. How many are left out is told: they are `what` ("general texts")."""
    limit = longest_row(loaded.model.config)
    lengths = {
        key: len(encode(loaded.tokenizer, messages))
        + len(loaded.tokenizer(answer, add_special_tokens=False)["input_ids"])
        for key, (messages, answer) in rows.items()
    }
    kept = {key: row for key, row in rows.items() if lengths[key] <= limit}
    if len(kept) < len(rows):
        left = len(rows) - len(kept)
        report.log(f"{left} of {len(rows)} {what} are left out: longer than the {limit} tokens that the model can read")
    return kept


def _piece(model: BatchedModel, rows: list[tuple[list[int], list[int]]]) -> list[float]:
    """The losses of some rows (prompt ids, answer ids) in one forward pass."""
    import torch

    joining = []
    for prompt, answer in rows:
        base = model.base(prompt)
        first = len(prompt) - base - 1  # the token after which the answer's first one is due
        ids = (prompt + answer)[base:-1]
        joining.append(PrefillSequence(ids, base, range(first, first + len(answer)), cached=False))
    targets = torch.tensor([token for _, answer in rows for token in answer])
    logits = model([], joining).float().cpu()
    each = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return [float(part.mean()) for part in each.split([len(answer) for _, answer in rows])]


def _pieces(keys: list[str], prompts: Mapping[str, list[int]], answers: Mapping[str, list[int]]) -> list[list[str]]:
    pieces: list[list[str]] = []
    tokens = PIECE_TOKENS
    for key in keys:
        own = len(prompts[key]) + len(answers[key])
        if tokens + own > PIECE_TOKENS:
            pieces.append([])
            tokens = 0
        pieces[-1].append(key)
        tokens += own
    return pieces


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
