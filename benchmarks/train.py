"""Seconds per training step of this pipeline, beside TRL's SFTTrainer (completion-only loss).

    python benchmarks/train.py [--json] [--batch 16] [--steps 6] [--precision bf16] [--peer plain,padding_free,packing]
    python benchmarks/train.py --csv banking77/train.csv --input text --output category --instruction labels

Data: messages of the sample task (data/support_tickets) with its system prompt, and their JSON completions; or two
columns of a CSV file, with an instruction that lists every label (`labels`) or is short (`short`). Peer: SFTTrainer
with peft's LoRA on the same layers, with the same model, rows, order, batches, learning rate, clipping, initial weights
and precision. Both train alternately: after each step of the peer, this pipeline computes the same rows, so that other
load on the machine affects both, and the ratio is that of single steps. The losses have to agree in every step. Each
has a process of its own: this pipeline's in the environment that its jobs have (backends/local.py), the peer's in that
of this command, or with `--job-environment` in the same one.

`packing` and `padding_free` are TRL's own modes; without flash attention their rows attend to each other, and their
loss is another one, so that only their speed can be compared. The share of the peak is the useful work of a step
divided by the speed of a matrix product of the same number of tokens, measured beside it.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
    parser.add_argument("--job-environment", action="store_true", help="also for the peer")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options)
        return
    if options.job_environment:
        in_the_environment_of_a_job()
    figures = [measure(options, mode) for mode in options.peer.split(",")]
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


def measure(options: argparse.Namespace, mode: str) -> dict[str, Any]:
    """Train with both, alternating steps; the figures of the report, seconds per step and losses (nats per token)."""
    import torch

    with pipeline_process() as pipeline, tempfile.TemporaryDirectory() as scratch:
        peer_seconds, peer_losses = sft_trainer(options, pipeline, mode, Path(scratch))
    seconds = pipeline.seconds[WARM_UP:]
    ratios = [theirs / own for theirs, own in zip(peer_seconds[WARM_UP:], seconds, strict=True)]
    differences = [abs(a - b) / abs(b) for a, b in zip(pipeline.losses, peer_losses, strict=True)]
    return {
        "machine": machine(),
        "threads": torch.get_num_threads(),
        **pipeline.about,
        "peer": f"trl {mode}" + (", allocator of a job" if options.job_environment else ""),
        "batch": options.batch,
        "steps": len(ratios),
        "layers": options.layers or "all",
        "seconds_a_step": round(statistics.median(seconds), 3),
        "peer_seconds_a_step": round(statistics.median(peer_seconds[WARM_UP:]), 3),
        "ratio": round(statistics.median(ratios), 2),
        "ratio_spread": [round(min(ratios), 2), round(max(ratios), 2)],
        "share_of_peak": round(pipeline.about["gflop"] / statistics.median(seconds) / pipeline.about["gflops"], 3),
        "losses": [round(loss, 4) for loss in pipeline.losses],
        "peer_losses": [round(loss, 4) for loss in peer_losses],
        "loss_difference": max(differences),
    }


def rules_of(options: argparse.Namespace) -> Any:
    from finetune_pipeline.config import Lora, Train

    return Train(
        batch_size=options.batch,
        learning_rate=RATE,
        layers=options.layers,
        precision=options.precision,
        seed=SEED,
        lora=Lora(r=RANK, alpha=2 * RANK),
        max_tokens_per_batch=16_384,
    )


def in_the_environment_of_a_job() -> None:
    """Start this script again in that environment, which is read when a process starts."""
    environment = job()
    if any(os.environ.get(name) != value for name, value in environment.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], environment)  # noqa: S606 (no shell is meant)


def job() -> dict[str, str]:
    from finetune_pipeline.backends.local import ALLOCATOR, job_environment

    return {**job_environment(), **ALLOCATOR}


class Pipeline:
    """The process of this pipeline's training, one step at a time."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.about: dict[str, Any] = self._read()
        self.seconds: list[float] = []
        self.losses: list[float] = []

    def step(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        done = self._read()
        self.seconds.append(done["seconds"])
        self.losses.append(done["loss"])

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                found: dict[str, Any] = json.loads(line)
                return found
        raise RuntimeError("the training process has ended")


@contextmanager
def pipeline_process() -> Iterator[Pipeline]:
    command = [sys.executable, *sys.argv, "--worker"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=job()) as process:
        try:
            yield Pipeline(process)
        finally:
            process.kill()


def work(options: argparse.Namespace) -> None:
    """The process of `Pipeline`: what it trains, then a step for each line of the standard input."""
    system, pairs = rows_of(options)
    rules = rules_of(options)
    training = PackedTraining(options.model or sample_model(), rules, system, pairs)
    print(json.dumps(training.about()), flush=True)
    for _ in sys.stdin:
        training.step()
        print(json.dumps({"seconds": training.seconds[-1], "loss": training.losses[-1]}), flush=True)


def tokenized_rows(base: Any, system: str, pairs: list[tuple[str, str]]) -> list[Any]:
    from finetune_pipeline.records import Example, Message
    from finetune_pipeline.train.tokenize import tokenize

    examples = [
        Example(str(n), (Message("user", prompt), Message("assistant", completion)), "benchmark", str(n))
        for n, (prompt, completion) in enumerate(pairs)
    ]
    return tokenize(examples, base.tokenizer, system, base.end_ids)


class PackedTraining:
    """This pipeline's training step, one call of `step` at a time."""

    def __init__(self, folder: Path, rules: Any, system: str, pairs: list[tuple[str, str]]) -> None:
        import torch

        from finetune_pipeline.inference.prefix import common_prefix
        from finetune_pipeline.models.device import uses_bf16
        from finetune_pipeline.train.method import load_base, make_trainable
        from finetune_pipeline.train.optimizer import optimizer_for
        from finetune_pipeline.train.packing import PackedForward

        self.folder, self.rules, self.bf16 = folder, rules, uses_bf16(rules.precision)
        base = load_base(folder, rules)
        self.rows = tokenized_rows(base, system, pairs)
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

    def about(self) -> dict[str, Any]:
        """What is trained. `gflop`: useful operations of a step; `gflops`: the measured peak for matrix products."""
        from finetune_pipeline.models.architecture import Architecture
        from finetune_pipeline.models.device import kind
        from finetune_pipeline.models.gemm import gflops
        from finetune_pipeline.models.training_work import step_flops

        architecture = Architecture.of_model(self.forward.model)
        works = [
            step_flops(architecture, self.rules, [self.forward.load(batch, padding=False)]) for batch in self.batches
        ]
        return {
            "model": self.folder.name,
            "precision": "bf16" if self.bf16 else "fp32",
            "shared_tokens": len(self.prefix),
            "tokens_per_row": round(sum(row.tokens for row in self.rows) / len(self.rows), 1),
            "gflop": round(statistics.median(works) / 1e9, 1),
            "gflops": round(gflops(kind(), self.bf16), 1),
        }

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


def sft_trainer(
    options: argparse.Namespace, pipeline: Pipeline, mode: str, scratch: Path
) -> tuple[list[float], list[float]]:
    """Seconds and losses of the peer's steps; after each of them, this pipeline computes one."""
    from transformers import TrainerCallback

    from finetune_pipeline.models.device import synchronize

    class Alternate(TrainerCallback):  # type: ignore[misc]
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self.start = 0.0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            synchronize()
            self.seconds.append(time.perf_counter() - self.start)
            pipeline.step()

    alternate = Alternate()
    folder = options.model or sample_model()
    peer = trainer_of(folder, rules_of(options), *rows_of(options), mode, scratch, [alternate])
    peer.train()
    return alternate.seconds, [line["loss"] for line in peer.state.log_history if "loss" in line]


def trainer_of(
    folder: Path,
    rules: Any,
    system: str,
    pairs: list[tuple[str, str]],
    mode: str,
    scratch: Path,
    callbacks: list[Any],
    **settings: Any,
) -> Any:
    """TRL's trainer with the model, adapter, rows and settings of this pipeline's; `settings`: more of SFTConfig."""
    import torch
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    from finetune_pipeline.models.device import kind, uses_bf16
    from finetune_pipeline.train.method import load_base, make_trainable

    base = load_base(folder, rules)
    tokenized = tokenized_rows(base, system, pairs)
    torch.manual_seed(SEED)
    wrapped = make_trainable(base, rules).wrapped
    for module in wrapped.modules():
        vars(module).pop("forward", None)  # peft's own layers, without this project's
    own = SFTConfig(
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
        bf16=uses_bf16(rules.precision),
        gradient_checkpointing=False,
        use_cpu=kind() == "cpu",
        dataloader_pin_memory=False,
        dataset_kwargs={"skip_prepare_dataset": mode != "packing"},
        packing=mode == "packing",
        padding_free=mode == "padding_free",
        max_length=None if mode != "packing" else 4096,
        shuffle_dataset=False,
        **settings,
    )
    rows = [
        {
            "input_ids": row.prompt + row.completions[0].ids,
            "labels": [-100] * len(row.prompt) + row.completions[0].ids,
        }
        for row in tokenized
    ]
    return SFTTrainer(
        wrapped,
        args=own,
        train_dataset=Dataset.from_list(rows),
        processing_class=base.tokenizer,
        callbacks=callbacks,
    )


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
    print(
        f"\nuseful work: {figures['gflop']} GFLOP a step, {figures['share_of_peak']:.0%} of {figures['gflops']} GFLOP/s"
    )
    print(f"speedup: {figures['ratio']} (single steps {low} to {high})")
    print(f"largest relative difference of the losses: {figures['loss_difference']:.1e}")


if __name__ == "__main__":
    main()
