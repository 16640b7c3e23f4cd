"""Answers per second of the batched decoder, compared with transformers' `generate`.

    python benchmarks/generation.py [--json] [--rows 64] [--rounds 3] [--model FOLDER] [--threads N]

Data: messages of the sample task (data/support_tickets) with the task's system prompt; greedy, at most 48 new tokens.
Peer: `model.generate` with the same model and rows, in batches of 32 padded on the left, sorted by length (its best
case). Both run in fp32 in this process, alternately. A round is one pass of each, and the ratio is taken within a
round, so that other load on the machine affects both. The table also counts the rows with the same tokens from both.

There are two kinds of prompts: `zero_shot`, and `few_shot` with three fixed examples, where the shared prefix is
longer. The untuned model mostly generates up to the limit. With a tuned model, whose sequences finish at different
times, the decoder has a larger advantage.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from machine import machine
from sample_task import DATA, sample_model, sample_rows

NEW_TOKENS = 48
BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object of figures on the last line")
    parser.add_argument("--rows", type=int, default=64, help="prompts in a round")
    parser.add_argument("--rounds", type=int, default=3, help="passes of each implementation")
    parser.add_argument("--model", type=Path, help="folder of the model; default: the sample task's base model")
    parser.add_argument("--threads", type=int, help="threads; default: torch's")
    options = parser.parse_args()
    figures = measure(options.model or sample_model(), options.rows, options.rounds, options.threads)
    show(figures)
    if options.json:
        print(json.dumps(figures))


def measure(folder: Path, rows: int, rounds: int, threads: int | None) -> dict[str, Any]:
    import torch
    from transformers import AutoModelForCausalLM

    from finetune_pipeline.inference.loading import load

    if threads:
        torch.set_num_threads(threads)
    loaded = load(folder)
    peer = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()  # in transformers' weight layout
    kinds = {kind: prompts(loaded.tokenizer, kind, rows) for kind in ("zero_shot", "few_shot")}
    return {
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "model": folder.name,
        "rows": rows,
        "new_tokens": NEW_TOKENS,
        "kinds": {kind: compare(loaded, peer, some, rounds) for kind, some in kinds.items()},
    }


def prompts(tokenizer: Any, kind: str, count: int) -> list[list[int]]:
    """Token ids of `count` prompts; the next three rows are the examples of `few_shot`."""
    from finetune_pipeline.baseline.prompts import with_shots
    from finetune_pipeline.config import load_task
    from finetune_pipeline.inference.generate import encode
    from finetune_pipeline.records import Example, Message

    task = load_task(DATA)
    examples = [
        Example(str(i), (Message("user", prompt), Message("assistant", completion)), "shop", str(i))
        for i, (prompt, completion) in enumerate(sample_rows()[: count + 3])
    ]
    shots = examples[count:] if kind == "few_shot" else []
    return [encode(tokenizer, with_shots(row, task.prompt.system, shots)) for row in examples[:count]]


def compare(loaded: Any, peer: Any, rows: list[list[int]], rounds: int) -> dict[str, Any]:
    """Run both on the same prompts, `rounds` times; medians over the rounds."""
    from finetune_pipeline.inference.prefix import common_prefix

    ordered = sorted(rows, key=len, reverse=True)
    ours_seconds, peer_seconds = [], []
    for _ in range(rounds):
        start = time.perf_counter()
        ours = decoder(loaded, ordered)
        ours_seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        theirs = transformers_generate(peer, loaded, ordered)
        peer_seconds.append(time.perf_counter() - start)
    ratios = [p / o for o, p in zip(ours_seconds, peer_seconds, strict=True)]
    tokens = sum(len(answer) for answer in ours)
    return {
        "shared_tokens": len(common_prefix(rows)),
        "prompt_tokens": round(sum(map(len, rows)) / len(rows), 1),
        "answers_per_second": round(len(rows) / statistics.median(ours_seconds), 2),
        "tokens_per_second": round(tokens / statistics.median(ours_seconds), 1),
        "peer_answers_per_second": round(len(rows) / statistics.median(peer_seconds), 2),
        "peer_tokens_per_second": round(tokens / statistics.median(peer_seconds), 1),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_spread": [round(min(ratios), 2), round(max(ratios), 2)],
        "same_answers": sum(a == b for a, b in zip(ours, theirs, strict=True)),
    }


def decoder(loaded: Any, rows: list[list[int]]) -> list[list[int]]:
    """Answers (token ids) of the batched decoder."""
    from finetune_pipeline.inference.decoder import Decoder, Request
    from finetune_pipeline.inference.generate import PREFILL_TOKENS
    from finetune_pipeline.inference.prefix import common_prefix

    engine = Decoder(loaded.model, loaded.eos_ids, common_prefix(rows), BATCH, PREFILL_TOKENS)
    engine.add_request([Request(str(i), row, NEW_TOKENS) for i, row in enumerate(rows)])
    answers: list[list[int]] = [[] for _ in rows]
    while engine.running or engine.waiting:
        for token in engine.step():
            answers[int(token.id)].append(token.token)
    return answers


def transformers_generate(model: Any, loaded: Any, rows: list[list[int]]) -> list[list[int]]:
    """Answers (token ids) of `model.generate`, each up to its first end-of-turn token."""
    import torch

    end, answers = sorted(loaded.eos_ids), []
    for first in range(0, len(rows), BATCH):
        batch = rows[first : first + BATCH]
        longest = max(map(len, batch))
        ids = torch.tensor([[end[0]] * (longest - len(row)) + row for row in batch])
        mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in batch])
        with torch.inference_mode():
            out = model.generate(
                input_ids=ids,
                attention_mask=mask,
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                eos_token_id=end,
                pad_token_id=end[0],
            )
        answers += [_until_end(row, loaded.eos_ids) for row in out[:, longest:].tolist()]
    return answers


def _until_end(ids: list[int], end: frozenset[int]) -> list[int]:
    at = next((i for i, token in enumerate(ids) if token in end), len(ids) - 1)
    return ids[: at + 1]


def show(figures: dict[str, Any]) -> None:
    print(f"{figures['model']}, {figures['rows']} prompts, at most {figures['new_tokens']} new tokens each, fp32")
    print(f"{figures['machine']}, {figures['threads']} threads\n")
    print(f"{'prompts':<11}{'tokens':>7}{'shared':>8}{'answers/s':>11}{'tokens/s':>10}{'peer':>8}{'ratio':>8}   same")
    for kind, f in figures["kinds"].items():
        spread = f"({f['ratio_spread'][0]} to {f['ratio_spread'][1]})"
        print(
            f"{kind:<11}{f['prompt_tokens']:>7.0f}{f['shared_tokens']:>8}{f['answers_per_second']:>11.2f}"
            f"{f['tokens_per_second']:>10.0f}{f['peer_answers_per_second']:>8.2f}{f['ratio']:>8.2f}   "
            f"{f['same_answers']}/{figures['rows']} {spread}"
        )
    print("\npeer: transformers' generate, answers/s; ratio: ours to peer, median of the rounds (minimum to maximum)")


if __name__ == "__main__":
    main()
