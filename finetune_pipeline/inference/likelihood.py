"""The mean negative log likelihood per token (nats) of given completions.

    losses(loaded, {"fact-01": ([{"role": "user", "content": "Why is the sky blue?"}], "Sunlight contains ...")})
    # {"fact-01": 1.93}

It measures general ability (has the tuned model a higher loss on general text than its base?) and memorization (has it
a lower loss on its training rows than on other rows?). The end-of-turn token is not counted: every tuning learns it
first, and it says nothing about text.

Rows are computed without padding, and the common prefix of all prompts once (inference/attention.py). `bf16` is for the
matrix products; unlike answers, a mean over many tokens is the same up to a thousandth.
"""

from __future__ import annotations

from collections.abc import Mapping

from finetune_pipeline.inference.batched_forward import BatchedModel, PrefillSequence
from finetune_pipeline.inference.generate import Messages, encode
from finetune_pipeline.inference.loading import Loaded
from finetune_pipeline.inference.model_family import within_limit
from finetune_pipeline.inference.prefix import common_prefix
from finetune_pipeline.models.device import autocast
from finetune_pipeline.records import SILENT, Reporter

BATCH_TOKENS = 512  # in one forward pass: enough for the full speed of a CPU, with small logits


def losses(
    loaded: Loaded,
    rows: Mapping[str, tuple[Messages, str]],
    what: str = "losses",
    report: Reporter = SILENT,
    bf16: bool = False,
) -> dict[str, float]:
    """Loss by row id. `rows`: (prompt messages, completion) by id; rows with an empty completion are left out."""
    prompts = {key: encode(loaded.tokenizer, messages) for key, (messages, _) in rows.items()}
    completions = {key: _tokens(loaded, completion) for key, (_, completion) in rows.items()}
    result: dict[str, float] = {}
    with autocast(bf16):
        model = BatchedModel(loaded.model, common_prefix(list(prompts.values())))
        for batch in _batches([key for key in rows if completions[key]], prompts, completions):
            report.alive()
            batch_losses = _batch_losses(model, [(prompts[key], completions[key]) for key in batch])
            result |= dict(zip(batch, batch_losses, strict=True))
            report.progress(what, len(result), len(rows))
    return result


def fitting(
    loaded: Loaded, rows: Mapping[str, tuple[Messages, str]], what: str, report: Reporter
) -> dict[str, tuple[Messages, str]]:
    """The rows within the model's limit of tokens. The number of skipped rows is logged as `what`."""

    def tokens(key: str) -> int:
        messages, completion = rows[key]
        return len(encode(loaded.tokenizer, messages)) + len(_tokens(loaded, completion))

    return {key: rows[key] for key in within_limit(rows, tokens, loaded.model.config, what, report)}


def _tokens(loaded: Loaded, text: str) -> list[int]:
    return list(loaded.tokenizer(text, add_special_tokens=False)["input_ids"])


def _batch_losses(model: BatchedModel, rows: list[tuple[list[int], list[int]]]) -> list[float]:
    """The losses of rows (prompt ids, completion ids), in one forward pass."""
    import torch

    sequences = []
    for prompt, completion in rows:
        base = model.base(prompt)
        first = len(prompt) - base - 1  # the index whose logits predict the first token of the completion
        ids = (prompt + completion)[base:-1]
        sequences.append(PrefillSequence(ids, base, range(first, first + len(completion)), cached=False))
    logits = model([], sequences).float()
    targets = torch.tensor([token for _, completion in rows for token in completion], device=logits.device)
    token_losses = torch.nn.functional.cross_entropy(logits, targets, reduction="none").cpu()
    return [float(row.mean()) for row in token_losses.split([len(completion) for _, completion in rows])]


def _batches(
    keys: list[str], prompts: Mapping[str, list[int]], completions: Mapping[str, list[int]]
) -> list[list[str]]:
    """The keys in order, in batches of at most BATCH_TOKENS tokens; a longer row is a batch by itself."""
    batches: list[list[str]] = []
    tokens = BATCH_TOKENS
    for key in keys:
        own = len(prompts[key]) + len(completions[key])
        if tokens + own > BATCH_TOKENS:
            batches.append([])
            tokens = 0
        batches[-1].append(key)
        tokens += own
    return batches
