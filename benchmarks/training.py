"""Seconds per training step of this pipeline, compared with transformers' `Trainer` and peft.

    python benchmarks/training.py [--json] [--rows 32] [--epochs 2] [--layers N] [--csv FILE --input A --output B]

Data: messages of the sample task (data/support_tickets) with the task's system prompt, and their JSON completions; or
two columns of a CSV file. Peer: `Trainer` with peft's LoRA on the same layers, rows padded to the longest of their
batch, labels on the completion only; with the same model, rows, order, batches, learning rate, clipping and initial
weights, in fp32. Both train alternately: after each step of the Trainer, this pipeline computes the same rows, so that
other load on the machine affects both, and the ratio is that of single steps. The losses have to agree in every step,
because it is the same training.

With `--layers`, both tune only that many upper layers. This pipeline computes the layers below once per row, which
shows from the second epoch on.
"""

from __future__ import annotations

import argparse
import csv
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import machine
from sample_task import DATA, sample_model, sample_rows

BATCH, RATE, SEED = 16, 1e-3, 13


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object of figures on the last line")
    parser.add_argument("--rows", type=int, default=32, help="training rows")
    parser.add_argument("--epochs", type=int, default=2, help="passes over the rows")
    parser.add_argument("--layers", type=int, help="tune only this many upper layers; default: all")
    parser.add_argument("--model", type=Path, help="folder of the model; default: the sample task's base model")
    parser.add_argument("--threads", type=int, help="threads; default: torch's")
    parser.add_argument("--csv", type=Path, help="a CSV file with other rows; see --input and --output")
    parser.add_argument("--input", default="text", help="column of the prompts")
    parser.add_argument("--output", default="label", help="column of the completions")
    options = parser.parse_args()
    pairs = csv_rows(options.csv, options.input, options.output) if options.csv else sample_rows()
    figures = measure(
        options.model or sample_model(), pairs[: options.rows], options.epochs, options.layers, options.threads
    )
    show(figures)
    if options.json:
        print(json.dumps(figures))


def csv_rows(path: Path, prompt: str, completion: str) -> list[tuple[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return [(row[prompt], row[completion]) for row in csv.DictReader(file)]


def measure(
    folder: Path, pairs: list[tuple[str, str]], epochs: int, layers: int | None, threads: int | None
) -> dict[str, Any]:
    """Train with both, alternating steps; the figures of the report, seconds per step and losses (nats per token)."""
    import torch

    from finetune_pipeline.config import Train

    if threads:
        torch.set_num_threads(threads)
    rules = Train(batch_size=BATCH, learning_rate=RATE, layers=layers, precision="fp32", seed=SEED)
    ours = PackedTraining(folder, rules, pairs)
    with tempfile.TemporaryDirectory() as scratch:
        peer_seconds, peer_losses = trainer(folder, rules, ours, epochs, Path(scratch))
    ratios = [theirs / own for theirs, own in zip(peer_seconds, ours.seconds, strict=True)]
    differences = [abs(a - b) / abs(b) for a, b in zip(ours.losses, peer_losses, strict=True)]
    tokens = sum(row.tokens for row in ours.rows)
    last = len(ours.batches)  # steps of an epoch
    return {
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "model": folder.name,
        "layers": layers or "all",
        "rows": len(pairs),
        "steps": len(ratios),
        "tokens_per_row": round(tokens / len(pairs), 1),
        "shared_tokens": len(ours.prefix),
        "seconds_a_step": round(statistics.median(ours.seconds), 3),
        "seconds_a_step_last_epoch": round(statistics.median(ours.seconds[-last:]), 3),
        "rows_per_second": round(len(pairs) * epochs / sum(ours.seconds), 2),
        "tokens_per_second": round(tokens * epochs / sum(ours.seconds), 1),
        "peer_seconds_a_step": round(statistics.median(peer_seconds), 3),
        "peer_rows_per_second": round(len(pairs) * epochs / sum(peer_seconds), 2),
        "peer_tokens_per_second": round(tokens * epochs / sum(peer_seconds), 1),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_last_epoch": round(statistics.median(ratios[-last:]), 2),
        "ratio_spread": [round(min(ratios), 2), round(max(ratios), 2)],
        "losses": [round(loss, 5) for loss in ours.losses],
        "peer_losses": [round(loss, 5) for loss in peer_losses],
        "loss_difference": max(differences),
    }


class PackedTraining:
    """This pipeline's training step: packed rows, the shared prefix once, logits of supervised tokens only."""

    def __init__(self, folder: Path, rules: Any, pairs: list[tuple[str, str]]) -> None:
        import torch

        from finetune_pipeline.config import load_task
        from finetune_pipeline.inference.prefix import common_prefix
        from finetune_pipeline.records import Example, Message
        from finetune_pipeline.train.method import load_base, make_trainable
        from finetune_pipeline.train.packing import PackedForward
        from finetune_pipeline.train.tokenize import tokenize

        examples = [
            Example(str(n), (Message("user", prompt), Message("assistant", completion)), "benchmark", str(n))
            for n, (prompt, completion) in enumerate(pairs)
        ]
        base = load_base(folder, rules)
        self.rows = tokenize(examples, base.tokenizer, load_task(DATA).prompt.system, base.end_ids)
        self.prefix = common_prefix([row.prompt for row in self.rows])
        self.batches = [self.rows[at : at + BATCH] for at in range(0, len(self.rows), BATCH)]
        torch.manual_seed(SEED)
        self.weights = list(make_trainable(base, rules).weights.values())
        self.forward = PackedForward(base.model, self.prefix)
        self.optimizer = torch.optim.AdamW(self.weights, lr=RATE, weight_decay=0.0)
        self.rules = rules
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def step(self) -> None:
        """Compute the next step, and record its seconds and loss."""
        import torch

        start = time.perf_counter()
        batch = self.batches[len(self.losses) % len(self.batches)]
        supervised, total = sum(row.learned for row in batch), 0.0
        for rows in self.forward.micro_batches(batch, self.rules.max_tokens_per_batch):
            loss = self.forward.losses(rows).sum()
            (loss / supervised).backward()
            total += float(loss.detach()) / supervised
        torch.nn.utils.clip_grad_norm_(self.weights, self.rules.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.seconds.append(time.perf_counter() - start)
        self.losses.append(total)


def trainer(
    folder: Path, rules: Any, ours: PackedTraining, epochs: int, scratch: Path
) -> tuple[list[float], list[float]]:
    """Seconds and losses of the Trainer's steps; after each of them, `ours` computes one."""
    import torch
    from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

    from finetune_pipeline.train import adapter

    class Alternate(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.start = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            self.seconds.append(time.perf_counter() - self.start)
            ours.step()

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    torch.manual_seed(SEED)
    wrapped = adapter.with_adapter(model, rules)
    settings = TrainingArguments(
        output_dir=str(scratch),
        per_device_train_batch_size=BATCH,
        num_train_epochs=epochs,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=rules.max_grad_norm,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=False,
        use_cpu=not torch.cuda.is_available(),
    )
    alternate = Alternate()
    rows = [{"ids": row.prompt + row.completions[0].ids, "start": len(row.prompt)} for row in ours.rows]
    peer = Trainer(wrapped, settings, data_collator=padded, train_dataset=rows, callbacks=[alternate])
    peer.train()
    return alternate.seconds, [line["loss"] for line in peer.state.log_history if "loss" in line]


def padded(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The usual collator: rows padded on the right, labels on the completion only."""
    import torch

    longest = max(len(row["ids"]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels, mask = torch.full_like(ids, -100), torch.zeros_like(ids)
    for n, row in enumerate(rows):
        length, start = len(row["ids"]), row["start"]
        ids[n, :length] = torch.tensor(row["ids"])
        mask[n, :length] = 1
        labels[n, start:length] = ids[n, start:length]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def show(figures: dict[str, Any]) -> None:
    """Print the report."""
    print(f"\n{figures['model']}, layers tuned: {figures['layers']}")
    print(f"{figures['machine']}, {figures['threads']} threads")
    print(
        f"{figures['rows']} rows of {figures['tokens_per_row']} tokens, {figures['shared_tokens']} of them shared; "
        f"{figures['steps']} steps of {BATCH} rows\n"
    )
    print(f"{'':24}{'s a step':>10}{'last epoch':>12}{'rows/s':>9}{'tokens/s':>10}")
    line = "{:24}{:>10}{:>12}{:>9}{:>10}"
    own = [figures[n] for n in ("seconds_a_step", "seconds_a_step_last_epoch", "rows_per_second", "tokens_per_second")]
    peer = [figures[n] for n in ("peer_seconds_a_step", "peer_rows_per_second", "peer_tokens_per_second")]
    print(line.format("finetune_pipeline", *own))
    print(line.format("Trainer and peft", peer[0], "", *peer[1:]))
    low, high = figures["ratio_spread"]
    print(f"\nspeedup: {figures['ratio']} (single steps {low} to {high}; last epoch {figures['ratio_last_epoch']})")
    first, last = figures["losses"][0], figures["losses"][-1]
    print(f"losses: {first} to {last}; largest relative difference {figures['loss_difference']:.1e}")


if __name__ == "__main__":
    main()
