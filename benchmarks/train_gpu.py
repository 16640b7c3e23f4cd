"""Training on a GPU: seconds per step, tokens per second and peak memory, beside TRL with its best settings.

    python benchmarks/train_gpu.py [--size 1b] [--method lora] [--batch 16] [--steps 8] [--rounds 3] [--json]
    python benchmarks/train_gpu.py --size 7b --method qlora --peer none

The model has random weights and the sizes of Llama (SIZES), since neither speed nor memory depends on their values.
Rows are messages of the sample task, behind a short instruction and behind one of about 566 tokens that names 77
intents. The peer is TRL's SFTTrainer: padded rows; padding-free and packed rows, where flash attention is installed;
each with Liger's kernels where those are. Every run is a process of its own, which has the GPU to itself; sides and
rounds alternate. Without a GPU it runs a tiny model, which only shows that everything works.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from machine import machine
from sample_task import sample_model, sample_rows
from train import SEED, WARM_UP, PackedTraining, trainer_of

SIZES: dict[str, dict[str, int]] = {  # of Llama 3.2 1B and 3B, Llama 2 7B, Llama 3.1 8B
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
    "1b": {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
    "3b": {"hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24},
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32},
    "8b": {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
}
GROUPED = {"tiny": 2, "1b": 8, "3b": 8, "7b": 32, "8b": 8}  # heads of keys and values
SHORT = "Name the intent of the message."
INTENTS = 77
KINDS = ("missing", "late", "wrong", "broken", "refused", "changed", "unknown")
THINGS = ("parcel", "refund", "invoice", "address", "payment", "card", "order", "return", "login", "account", "price")
OURS = "finetune_pipeline"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=sorted(SIZES), default="1b")
    parser.add_argument("--method", choices=["lora", "qlora"], default="lora")
    parser.add_argument("--batch", type=int, default=16, help="rows of a step")
    parser.add_argument("--steps", type=int, default=8, help="counted steps of a run")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer", default="all", help="of TRL: all, none, or some of plain, padding_free, packing")
    parser.add_argument("--json", action="store_true", help="one JSON object of figures on the last line")
    parser.add_argument("--worker", nargs=3, metavar=("SIDE", "INSTRUCTION", "MODEL"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(work(options, *options.worker)))
        return
    where = device()
    if where == "processor":
        print("there is no GPU: a tiny model on the processor shows that everything works, and nothing else")
        options.size, options.method = "tiny", "lora"
    with tempfile.TemporaryDirectory(prefix="train-gpu-") as scratch:
        folder = random_model(options.size, Path(scratch))
        figures = [compare(options, instruction, folder) for instruction in ("long", "short")]
    print(f"{where}; {machine()}")
    if options.json:
        print(json.dumps({"device": where, "machine": machine(), "size": options.size, "figures": figures}))


def device() -> str:
    from finetune_pipeline.models.device import device_name

    return device_name()


def random_model(size: str, scratch: Path) -> Path:
    """A Llama of this size with random weights, and the tokenizer of the sample task's base model."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig

    from finetune_pipeline.models.device import kind

    source, folder = sample_model(), scratch / f"random-{size}"
    tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=True)
    config = LlamaConfig(
        **SIZES[size],
        num_key_value_heads=GROUPED[size],
        vocab_size=len(tokenizer),
        max_position_embeddings=8192,
        eos_token_id=tokenizer.eos_token_id,
        dtype=torch.bfloat16,
    )
    torch.manual_seed(SEED)
    with torch.device(kind()):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    if not (folder / "chat_template.jinja").exists() and (source / "chat_template.jinja").exists():
        shutil.copy(source / "chat_template.jinja", folder)
    return folder


def instruction_of(kind: str) -> str:
    if kind == "short":
        return SHORT
    intents = [f"{each}_{thing}" for thing in THINGS for each in KINDS][:INTENTS]
    return f"Name the intent of the customer's message. Answer with exactly one of these: {', '.join(intents)}"


def peers(options: argparse.Namespace) -> list[str]:
    if options.peer == "none":
        return []
    missing = [name for name in ("flash_attn", "liger_kernel") if not find_spec(name)]
    if missing:
        print(f"TRL without {' and '.join(missing)}, which are not installed: it would be faster with them")
    found = ["plain"] + (["padding_free", "packing"] if find_spec("flash_attn") else [])
    return found if options.peer == "all" else [name for name in options.peer.split(",") if name]


def compare(options: argparse.Namespace, instruction: str, folder: Path) -> dict[str, Any]:
    """All sides, round by round; prints and returns the medians."""
    sides = [OURS, *peers(options)]
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in sides}
    for _ in range(options.rounds):
        for side in sides:
            runs[side].append(run(side, instruction, folder))
    own = [each["seconds"] for each in runs[OURS]]
    figures: dict[str, Any] = {"instruction": instruction, "rows_tokens": runs[OURS][0]["tokens"]}
    shared = runs[OURS][0]["shared"]
    print(f"\n{instruction} instruction: {shared} shared tokens; {options.method}, {options.batch} rows a step")
    for side, found in runs.items():
        seconds = [each["seconds"] for each in found]
        ratios = [theirs / ours for theirs, ours in zip(seconds, own, strict=True)]
        figures[side] = {
            "seconds_a_step": round(statistics.median(seconds), 4),
            "seconds_spread": [round(min(seconds), 4), round(max(seconds), 4)],
            "tokens_per_second": round(found[0]["tokens"] / statistics.median(seconds)),
            "peak_mb": round(max(each["peak_mb"] for each in found)),
            "loss": [round(each["loss"], 4) for each in found],
            "ratio": round(statistics.median(ratios), 2),
            "ratio_spread": [round(min(ratios), 2), round(max(ratios), 2)],
        }
        show(side, figures[side])
    return figures


def show(side: str, line: dict[str, Any]) -> None:
    low, high = line["ratio_spread"]
    speed = f"{line['seconds_a_step']:>9.3f} s a step {line['tokens_per_second']:>9,} tokens of rows a second"
    print(f"{side:<18}{speed} {line['peak_mb']:>7,} MB {line['ratio']:>6.2f} x ({low} to {high})", flush=True)


def run(side: str, instruction: str, folder: Path) -> dict[str, Any]:
    command = [sys.executable, *sys.argv, "--worker", side, instruction, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed:\n{done.stderr[-3000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def work(options: argparse.Namespace, side: str, instruction: str, model: str) -> dict[str, Any]:
    """One run in this process: median seconds of a step, mean loss, peak memory."""
    import torch

    from finetune_pipeline.config import Lora, Train
    from finetune_pipeline.models.device import PeakDeviceMemory

    rules = Train(
        method=options.method,
        batch_size=options.batch,
        learning_rate=1e-3,
        seed=SEED,
        lora=Lora(r=16, alpha=32),
        max_tokens_per_batch=16_384,
    )
    count = options.batch * (options.steps + WARM_UP)
    rows = sample_rows()
    pairs = [(rows[n % len(rows)][0], json.loads(rows[n % len(rows)][1])["intent"] or "other") for n in range(count)]
    system = instruction_of(instruction)
    torch.manual_seed(SEED)
    with PeakDeviceMemory() as peak:
        if side == OURS:
            training = PackedTraining(Path(model), rules, system, pairs)
            for _ in training.batches:
                training.step()
            seconds, losses = training.seconds, training.losses
        else:
            seconds, losses = peer_steps(Path(model), rules, system, pairs, side)
    training = PackedTraining(Path(model), rules, system, pairs) if side != OURS else training
    tokens = [sum(row.tokens for row in batch) for batch in training.batches]
    return {
        "seconds": statistics.median(seconds[WARM_UP:]),
        "loss": statistics.mean(losses),
        "peak_mb": peak.mb,
        "tokens": statistics.median(tokens),
        "shared": len(training.prefix),
    }


def peer_steps(
    folder: Path, rules: Any, system: str, pairs: list[tuple[str, str]], mode: str
) -> tuple[list[float], list[float]]:
    from transformers import TrainerCallback

    from finetune_pipeline.models.device import synchronize

    seconds: list[float] = []

    class Clock(TrainerCallback):  # type: ignore[misc]
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            synchronize()
            seconds.append(time.perf_counter() - self.start)

    liger = {"use_liger_kernel": True} if find_spec("liger_kernel") else {}
    with tempfile.TemporaryDirectory() as scratch:
        trainer = trainer_of(folder, rules, system, pairs, mode, Path(scratch), [Clock()], **liger)
        if find_spec("flash_attn"):
            trainer.model.get_base_model().set_attn_implementation("flash_attention_2")
        trainer.train()
    return seconds, [line["loss"] for line in trainer.state.log_history if "loss" in line]


if __name__ == "__main__":
    main()
