"""Forgetting: the loss of general ability by tuning, and the price of keeping it. Several ways to train the same rows.

    python benchmarks/forgetting.py [--train FILE.csv --columns text label --system TEXT] [--rows 400] [--rounds 3]
        [--ways nothing rehearsal:0.2 divergence:0.2 masked_target:1 prompts:1] [--texts FILE.jsonl ...]
        [--model FOLDER] [--json]

Without a file: the sample task's rows. Ways, each with the same rows, order and rate (behind the colon: its weight):

nothing        the task's loss alone
rehearsal      general texts learned as completions, as the task's rows are
divergence     `train.keep_general`: KL(base || tuned) on general texts
masked_target  KL(base || tuned) on the task's own completions without the learned token (arXiv:2605.29498)
prompts        KL(base || tuned) on the task's own prompts, SelfAug (arXiv:2509.03934)

Measured on rows that are not trained on: task loss and exactly right answers; on general texts that are in no training
data, the relative rise of the loss over the base model's (interval: release/relative_change.py); seconds of the whole
training, the base model's part included, and as a ratio to `nothing` in the same round. --texts adds sets of your own,
lines of {"prompt": ..., "completion": ...}.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import machine
from sample_task import DATA, sample_model, sample_rows
from training_job import Row, answered, examples, read, settings_of, training_spec

from finetune_pipeline.models.device import autocast, release_memory
from finetune_pipeline.records import Silent
from finetune_pipeline.train.forward import targets, without_dropout
from finetune_pipeline.train.loop import Loop
from finetune_pipeline.train.tokenize import Completion, TokenizedExample

WAYS = {"nothing": 0.0, "rehearsal": 0.2, "divergence": 0.2, "masked_target": 1.0, "prompts": 1.0}
RISK = 0.05
REMOVED = -1e4  # a logit whose probability is 0 in fp32


@dataclass(frozen=True)
class Way:
    name: str
    weight: float

    @classmethod
    def of(cls, text: str) -> Way:
        name, _, weight = text.partition(":")
        if name not in WAYS:
            raise argparse.ArgumentTypeError(f"{name} is none of {', '.join(WAYS)}")
        return cls(name, float(weight or WAYS[name]))

    def __str__(self) -> str:
        return f"{self.name}:{self.weight:g}" if self.weight else self.name


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, help="CSV file of rows")
    parser.add_argument("--columns", nargs=2, default=(), help="of input and completion; default: the first two")
    parser.add_argument("--system", default="", help="system prompt, with --train")
    parser.add_argument("--rows", type=int, default=400, help="training rows")
    parser.add_argument("--held-out", type=int, default=100, help="rows to measure the task on")
    parser.add_argument("--rounds", type=int, default=3, help="seeds; each trains all ways")
    parser.add_argument("--ways", nargs="+", type=Way.of, default=[Way.of(name) for name in WAYS], metavar="WAY:WEIGHT")
    parser.add_argument("--texts", nargs="*", type=Path, default=[], help="JSONL of more general texts (the first 100)")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the training")
    parser.add_argument("--model", type=Path, help="folder of the model; default: the sample task's base model")
    parser.add_argument("--json", action="store_true", help="one JSON object of figures on the last line")
    options = parser.parse_args()
    figures = measure(options)
    if options.json:
        print(json.dumps(figures))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    from finetune_pipeline.config import load_task
    from finetune_pipeline.train.method import load_base
    from finetune_pipeline.train.shared import Shared

    system = options.system if options.train else load_task(DATA).prompt.system
    model = options.model or sample_model()
    texts = general_texts(options.texts)
    before: dict[str, dict[str, float]] = {}
    runs: list[dict[str, Any]] = []
    print(f"{'seed':>4} {'way':<18}{'task loss':>10}{'right':>9}{'seconds':>9}{'ratio':>7}  rise of the general loss")
    with tempfile.TemporaryDirectory(prefix="forgetting-") as folder:
        os.environ["FINETUNE_HOME"] = str(Path(folder) / "home")
        for seed in range(1, options.rounds + 1):
            rows = read(options.train, options.columns) if options.train else sample_rows()
            random.Random(seed).shuffle(rows)
            held_out, train = rows[: options.held_out], rows[options.held_out :][: options.rows]
            shared = Shared(load_base(model, rules_of(options, Way.of("nothing"), seed)), several=True)
            for way in options.ways:
                spec = training_spec(
                    "forgetting",
                    Path(folder) / f"{seed}-{way}",
                    examples(train),
                    examples(held_out),
                    rules_of(options, way, seed),
                    system=system,
                    model=model,
                )
                run = {"seed": seed, "way": str(way), **trained(way, spec, shared)}
                run |= measured(spec, held_out, texts, before)
                first = next((r for r in runs if r["seed"] == seed and r["way"] == "nothing"), run)
                run["ratio"] = round(run["seconds"] / first["seconds"], 3)
                runs.append(run)
                show(run)
    for way in options.ways:
        summary([run for run in runs if run["way"] == str(way)])
    return {"machine": machine(), "rows": options.rows, "runs": runs}


def rules_of(options: argparse.Namespace, way: Way, seed: int) -> Any:
    """Those of `finetune init`, for one epoch."""
    from finetune_pipeline.config import Train

    kept = way.weight if way.name in ("rehearsal", "divergence") else 0.0
    plain = {"num_epochs": 1, "learning_rate": 2e-3, "batch_size": 8, "checkpoint_seconds": 1e9}
    validation = {"keep": "last", "generate_rows": 0}
    return Train.model_validate(
        {**plain, "validation": validation, **settings_of(options.set), "seed": seed, "keep_general": {"weight": kept}}
    )


def general_texts(files: Sequence[Path]) -> dict[str, Any]:
    """The sets of texts that are measured, by name."""
    from finetune_pipeline.evaluate.general_ability import GeneralPrompt, conversations, prompts

    texts = {"general": conversations(prompts())}
    for file in files:
        rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()[:100]]
        texts[file.stem] = conversations(
            [
                GeneralPrompt(id=str(n), kind="", prompt=row["prompt"], completion=row["completion"])
                for n, row in enumerate(rows)
            ]
        )
    return texts


def trained(way: Way, spec: Any, shared: Any) -> dict[str, Any]:
    """Train one way; the adapter is saved in `spec.out`, and the base model is as before."""
    from finetune_pipeline.train import assembly, checkpoint

    made = assembly.assemble(spec, Silent(), shared=shared)
    began = time.monotonic()
    made.measure_base()
    plain = made.loop(spec.checkpoints, Silent(), lambda metrics, step: None)
    loop = LOOPS.get(way.name, Loop)(**{name: value for name, value in vars(plain).items() if name[0] != "_"})
    if isinstance(loop, Regularized):
        loop.prepare(way.weight, made.rows["train"], made.shared_prefix)
    state = checkpoint.TrainingState()
    loop.run(made.rows["train"], made.rows["validation"], state, made.optimizer)
    seconds = time.monotonic() - began
    made.trainable.save(spec.out, "base", made.base.tokenizer)
    loss = [line["validation_loss"] for line in state.history if "validation_loss" in line][-1]
    made.trainable.release()
    release_memory()
    return {"steps": state.step, "task_loss": round(loss, 4), "seconds": round(seconds, 1)}


class Rehearsal(Loop):
    """The general texts are learned: their negative log likelihood (nats per token) in place of the divergence."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        replay = self.replay
        assert replay is not None

        def learned(step: int, states: Any, own: Sequence[TokenizedExample] | None = None) -> Any:
            texts = replay.texts_at(step)
            with autocast(self.bf16):
                losses = self.forward.token_losses(states, targets(own or texts))
            return losses.sum() / sum(text.learned for text in texts)

        replay.divergence = learned  # type: ignore[method-assign]


class Regularized(Loop):
    """`weight` times the divergence of the tuned from the base model on the rows of the batch, in training."""

    def prepare(self, weight: float, rows: Sequence[TokenizedExample], shared_prefix: int) -> None:
        import torch

        self.weight, self.prefix, self.base = weight, shared_prefix, dict[str, Any]()
        computed = [self.computed(row) for row in rows]
        with torch.no_grad(), autocast(self.bf16), without_dropout(self.forward.model):
            for part in self.forward.micro_batches(computed, self.rules.max_tokens_per_batch):
                states = self.forward.states(part).split([row.learned for row in part])
                self.base |= {row.id: each.clone() for row, each in zip(part, states, strict=True)}

    def computed(self, row: TokenizedExample) -> TokenizedExample:
        """The row with all tokens learned whose hidden states are needed."""
        return row

    def divergences(self, states: Any, base: Any, removed: Any = None) -> Any:
        """KL(base || tuned) of every token [tokens], without the token ids `removed` [tokens]."""
        import torch

        logits = [self.forward.logits(each) for each in (base.detach(), states)]
        if removed is not None:
            logits = [each.scatter(-1, removed[:, None], REMOVED) for each in logits]
        target, tuned = (torch.log_softmax(each, dim=-1) for each in logits)
        return torch.nn.functional.kl_div(tuned, target.detach(), reduction="none", log_target=True).sum(-1)


class MaskedTarget(Regularized):
    def _loss(self, rows: Sequence[TokenizedExample], states: Any, totals: Any) -> tuple[Any, Any]:
        import torch

        loss, figures = super()._loss(rows, states, totals)
        if not torch.is_grad_enabled():
            return loss, figures
        base = torch.cat([self.base[row.id] for row in rows])
        kept = self.forward.in_chunks(self.divergences, states, base, torch.tensor(targets(rows)))
        return loss + self.weight * kept.sum() / totals.tokens, figures


class Prompts(Regularized):
    """The prompt's own tokens (behind what all rows begin with) are computed as learned ones are."""

    def computed(self, row: TokenizedExample) -> TokenizedExample:
        start = self.prefix + 1
        return TokenizedExample(
            row.id, row.prompt[:start], (Completion(row.prompt[start:] + row.completions[0].ids),), row.prompt_matches
        )

    def _backward(self, batch: Sequence[TokenizedExample], state: Any, totals: Any = None, filler: Any = ()) -> Any:
        self.rows = {row.id: row for row in batch}
        return super()._backward([self.computed(row) for row in batch], state, totals, filler)

    def _loss(self, rows: Sequence[TokenizedExample], states: Any, totals: Any) -> tuple[Any, Any]:
        import torch

        if not torch.is_grad_enabled():
            return super()._loss(rows, states, totals)
        own = [self.rows[row.id] for row in rows]
        pairs = [(row.learned - plain.learned, plain.learned) for row, plain in zip(rows, own, strict=True)]
        sizes = [size for pair in pairs for size in pair]  # of prompt and completion, row after row
        parts, base = states.split(sizes), torch.cat([self.base[row.id] for row in rows]).split(sizes)
        loss, figures = super()._loss(own, torch.cat(parts[1::2]), totals)
        kept = self.forward.in_chunks(self.divergences, torch.cat(parts[::2]), torch.cat(base[::2]))
        tokens = sum(self.computed(row).learned - row.learned for row in self.rows.values())
        return loss + self.weight * kept.sum() / tokens, figures


LOOPS = {"rehearsal": Rehearsal, "masked_target": MaskedTarget, "prompts": Prompts}


def measured(
    spec: Any, held_out: Sequence[Row], texts: Mapping[str, Any], before: dict[str, dict[str, float]]
) -> dict[str, Any]:
    """Rise of the loss on every set of texts with its bounds, and the held-out rows that are exactly right; `before`:
    losses of the base model, filled here."""
    from finetune_pipeline.inference.likelihood import losses
    from finetune_pipeline.inference.loading import base_only, load
    from finetune_pipeline.release.relative_change import relative_rise

    loaded = load(spec.base, spec.out)
    rises = {}
    for name, rows in texts.items():
        after = losses(loaded, rows)
        if name not in before:
            with base_only(loaded):
                before[name] = losses(loaded, rows)
        rise = relative_rise([before[name][key] for key in before[name]], [after[key] for key in before[name]], RISK, 0)
        rises[name] = [round(value, 4) for value in (rise.rise, rise.low, rise.high)]
    del loaded
    right = answered(spec.base, spec.out, spec.system, held_out)
    return {"rise": rises, "right": sum(right), "rows": len(right)}


def show(run: Mapping[str, Any]) -> None:
    rises = "; ".join(f"{name} {r:+.1%} ({low:+.1%} to {high:+.1%})" for name, (r, low, high) in run["rise"].items())
    right = f"{run['right']}/{run['rows']}"
    print(
        f"{run['seed']:>4} {run['way']:<18}{run['task_loss']:>10.4f}{right:>9}"
        f"{run['seconds']:>9.1f}{run['ratio']:>7.2f}  {rises}",
        flush=True,
    )


def summary(runs: Sequence[Mapping[str, Any]]) -> None:
    """Median and range over the seeds."""
    rises, ratios = [run["rise"]["general"][0] for run in runs], [run["ratio"] for run in runs]
    right = [run["right"] / run["rows"] for run in runs]
    print(
        f"{runs[0]['way']}: right {statistics.median(right):.1%} ({min(right):.1%} to {max(right):.1%}), general loss "
        f"{statistics.median(rises):+.1%} ({min(rises):+.1%} to {max(rises):+.1%}), "
        f"{statistics.median(ratios):.2f} times the time ({min(ratios):.2f} to {max(ratios):.2f})   {machine()}"
    )


if __name__ == "__main__":
    main()
