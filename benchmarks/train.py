"""Seconds per training step of this pipeline, beside TRL's SFTTrainer (completion-only loss).

    python benchmarks/train.py [--json] [--batch 16] [--steps 6] [--precision bf16] [--peer plain,padding_free,packing]
    python benchmarks/train.py --csv banking77/train.csv --input text --output category --instruction labels

Data: messages of the sample task (data/support_tickets) with its system prompt, and their JSON completions; or two
columns of a CSV file, with an instruction that lists every label (`labels`) or is short (`short`). Peer: SFTTrainer
with peft's LoRA on the same layers, with the same model, rows, order, batches, learning rate, clipping, initial weights
and precision. Both train alternately: after each step of the peer, this pipeline computes the same rows, so that other
load on the machine affects both, and the ratio is that of single steps. The losses have to agree in every step.

`packing` and `padding_free` are TRL's own modes; without flash attention their rows attend to each other, and their
loss is another one, so that only their speed can be compared. The share of the peak is the useful work of a step
divided by the speed of a matrix product of the same number of tokens, measured beside it.
"""

from __future__ import annotations

import argparse
import csv
import json
import random
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from machine import machine
from sample_task import DATA, sample_model, sample_rows

RATE, SEED, RANK = 1e-3, 13, 16
WARM_UP = 1  # steps that are not counted: the first allocates
SHORT = "Name the intent of the message to the bank, as one label."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object of figures on the last line")
    parser.add_argument("--batch", type=int, default=16, help="rows of a step")
    parser.add_argument("--steps", type=int, default=6, help="counted steps")
    parser.add_argument("--precision", choices=["auto", "bf16", "fp32"], default="auto")
    parser.add_argument("--layers", type=int, help="tune only this many upper layers; default: all")
    parser.add_argument("--model", type=Path, help="folder of the model; default: the sample task's base model")
    parser.add_argument("--csv", type=Path, help="a CSV file with other rows; see --input, --output, --instruction")
    parser.add_argument("--input", default="text", help="column of the prompts")
    parser.add_argument("--output", default="category", help="column of the completions")
    parser.add_argument("--instruction", choices=["labels", "short"], default="labels")
    parser.add_argument("--peer", default="plain", help="of TRL: plain, padding_free, packing; separated by commas")
    options = parser.parse_args()
    system, pairs = rows_of(options)
    figures = [measure(options, mode, system, pairs) for mode in options.peer.split(",")]
    for each in figures:
        show(each)
    if options.json:
        print(json.dumps(figures[0] if len(figures) == 1 else figures))


def rows_of(options: argparse.Namespace) -> tuple[str, list[tuple[str, str]]]:
    """The system prompt, and as many (prompt, completion) as the steps need."""
    from finetune_pipeline.config import load_task

    count = options.batch * (options.steps + WARM_UP)
    if options.csv is None:
        found = sample_rows()
        return load_task(DATA).prompt.system, [found[n % len(found)] for n in range(count)]
    with options.csv.open(encoding="utf-8", newline="") as file:
        found = [(row[options.input], row[options.output]) for row in csv.DictReader(file)]
    labels = sorted({label for _, label in found})
    random.Random(SEED).shuffle(found)
    listed = f"Name the intent of the customer's message. Answer with exactly one of these: {', '.join(labels)}"
    return (SHORT if options.instruction == "short" else listed), [found[n % len(found)] for n in range(count)]


def measure(options: argparse.Namespace, mode: str, system: str, pairs: list[tuple[str, str]]) -> dict[str, Any]:
    """Train with both, alternating steps; the figures of the report, seconds per step and losses (nats per token)."""
    import torch

    from finetune_pipeline.config import Lora, Train

    rules = Train(
        batch_size=options.batch,
        learning_rate=RATE,
        layers=options.layers,
        precision=options.precision,
        seed=SEED,
        lora=Lora(r=RANK, alpha=2 * RANK),
        max_tokens_per_batch=16_384,
    )
    ours = PackedTraining(options.model or sample_model(), rules, system, pairs)
    with tempfile.TemporaryDirectory() as scratch:
        peer_seconds, peer_losses = sft_trainer(ours, rules, mode, Path(scratch))
    seconds = ours.seconds[WARM_UP : len(peer_seconds)]
    ratios = [theirs / own for theirs, own in zip(peer_seconds[WARM_UP:], seconds, strict=True)]
    differences = [abs(a - b) / abs(b) for a, b in zip(ours.losses, peer_losses, strict=False)]
    return {
        "machine": machine(),
        "threads": torch.get_num_threads(),
        "model": (options.model or sample_model()).name,
        "precision": "bf16" if ours.bf16 else "fp32",
        "peer": f"trl {mode}",
        "batch": options.batch,
        "steps": len(ratios),
        "layers": options.layers or "all",
        "shared_tokens": len(ours.prefix),
        "tokens_per_row": round(sum(row.tokens for row in ours.rows) / len(ours.rows), 1),
        "seconds_a_step": round(statistics.median(seconds), 3),
        "peer_seconds_a_step": round(statistics.median(peer_seconds[WARM_UP:]), 3),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_spread": [round(min(ratios), 2), round(max(ratios), 2)],
        "losses": [round(loss, 4) for loss in ours.losses],
        "peer_losses": [round(loss, 4) for loss in peer_losses],
        "loss_difference": max(differences),
    }


class PackedTraining:
    """This pipeline's training step, one call of `step` at a time."""

    def __init__(self, folder: Path, rules: Any, system: str, pairs: list[tuple[str, str]]) -> None:
        import torch

        from finetune_pipeline.inference.prefix import common_prefix
        from finetune_pipeline.models.device import uses_bf16
        from finetune_pipeline.records import Example, Message
        from finetune_pipeline.train.method import load_base, make_trainable
        from finetune_pipeline.train.optimizer import optimizer_for
        from finetune_pipeline.train.packing import PackedForward
        from finetune_pipeline.train.tokenize import tokenize

        examples = [
            Example(str(n), (Message("user", prompt), Message("assistant", completion)), "benchmark", str(n))
            for n, (prompt, completion) in enumerate(pairs)
        ]
        self.folder, self.rules, self.bf16 = folder, rules, uses_bf16(rules.precision)
        base = load_base(folder, rules)
        self.tokenizer = base.tokenizer
        self.rows = tokenize(examples, base.tokenizer, system, base.end_ids)
        self.prefix = common_prefix([row.prompt for row in self.rows])
        size = rules.batch_size
        self.batches = [self.rows[at : at + size] for at in range(0, len(self.rows), size)]
        torch.manual_seed(SEED)
        trainable = make_trainable(base, rules)
        self.weights = trainable.weights
        self.forward = PackedForward(base.model, self.prefix)
        self.optimizer = optimizer_for(self.weights, rules)
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def step(self) -> None:
        """Compute the next step, and record its seconds and loss."""
        import torch

        from finetune_pipeline.models.device import autocast, synchronize

        start = time.perf_counter()
        batch = self.batches[len(self.losses) % len(self.batches)]
        learned, total = sum(row.learned for row in batch), 0.0
        for rows in self.forward.micro_batches(batch, self.rules.max_tokens_per_batch):
            with autocast(self.bf16):
                loss = self.forward.losses(rows).sum() / learned
            loss.backward()
            total += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(list(self.weights.values()), self.rules.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        synchronize()
        self.seconds.append(time.perf_counter() - start)
        self.losses.append(total)


def sft_trainer(ours: PackedTraining, rules: Any, mode: str, scratch: Path) -> tuple[list[float], list[float]]:
    """Seconds and losses of the peer's steps; after each of them, `ours` computes one."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import SFTConfig, SFTTrainer

    from finetune_pipeline.models.device import kind, synchronize
    from finetune_pipeline.train.method import load_base, make_trainable

    class Alternate(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.start = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            synchronize()
            self.seconds.append(time.perf_counter() - self.start)
            ours.step()

    base = load_base(ours.folder, rules)
    torch.manual_seed(SEED)
    wrapped = make_trainable(base, rules).wrapped
    for module in wrapped.modules():
        vars(module).pop("forward", None)  # peft's own layers, without this project's
    settings = SFTConfig(
        output_dir=str(scratch),
        per_device_train_batch_size=rules.batch_size,
        num_train_epochs=1,
        learning_rate=RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        max_grad_norm=rules.max_grad_norm,
        train_sampling_strategy="sequential",
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        disable_tqdm=True,
        bf16=ours.bf16,
        gradient_checkpointing=False,
        use_cpu=kind() == "cpu",
        dataloader_pin_memory=False,
        dataset_kwargs={"skip_prepare_dataset": mode != "packing"},
        packing=mode == "packing",
        padding_free=mode == "padding_free",
        max_length=None if mode != "packing" else 4096,
        shuffle_dataset=False,
    )
    rows = [
        {
            "input_ids": row.prompt + row.completions[0].ids,
            "labels": [-100] * len(row.prompt) + row.completions[0].ids,
        }
        for row in ours.rows
    ]
    alternate = Alternate()
    peer = SFTTrainer(
        wrapped,
        args=settings,
        train_dataset=Dataset.from_list(rows),
        processing_class=ours.tokenizer,
        callbacks=[alternate],
    )
    peer.train()
    return alternate.seconds, [line["loss"] for line in peer.state.log_history if "loss" in line]


def show(figures: dict[str, Any]) -> None:
    """Print the report."""
    print(f"\n{figures['model']}, {figures['precision']}, layers tuned: {figures['layers']}")
    print(f"{figures['machine']}, {figures['threads']} threads")
    print(
        f"rows of {figures['tokens_per_row']} tokens, {figures['shared_tokens']} of them shared; {figures['steps']} "
        f"steps of {figures['batch']} rows\n"
    )
    print(f"{'finetune_pipeline':24}{figures['seconds_a_step']:>10} s a step")
    print(f"{figures['peer']:24}{figures['peer_seconds_a_step']:>10} s a step")
    low, high = figures["ratio_spread"]
    print(f"\nspeedup: {figures['ratio']} (single steps {low} to {high})")
    print(f"largest relative difference of the losses: {figures['loss_difference']:.1e}")


if __name__ == "__main__":
    main()
