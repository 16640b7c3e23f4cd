"""Forgetting: the loss of general ability by tuning, and the price of keeping it. Three ways to train the same task.

    python benchmarks/forgetting.py [--json] [--task support_tickets] [--rounds 3] [--epochs 1.5] [--texts FILE.jsonl]

Data: the task's own split (materialized up to `data_split` where it is missing). Ways, each with the same rows, order
and rate: `nothing` (the task's loss alone), `rehearsal` (the usual peer: the same general texts learned as
completions), and `divergence` (`train.keep_general`: a penalty on the divergence from the base model on them). Measured
on the validation rows, never the test rows: task loss and, with --answers, exactly right answers; on general texts that
are in no training data, the relative rise of the loss over the base model's (interval: release/relative_change.py);
seconds of a step as a ratio to `nothing`, in the same round. --texts adds a set of your own, lines of {"prompt": ...,
"completion": ...}.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from machine import machine

from finetune_pipeline.config import Train
from finetune_pipeline.records import Silent

WAYS = ("nothing", "rehearsal", "divergence")
RISK = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object of figures on the last line")
    parser.add_argument("--task", default="support_tickets")
    parser.add_argument("--rounds", type=int, default=3, help="seeds; each trains all ways")
    parser.add_argument("--epochs", type=float, help="default: as declared")
    parser.add_argument("--weight", type=float, help="of rehearsal and divergence; default: as declared")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--answers", action="store_true", help="also answer the validation rows")
    parser.add_argument("--texts", type=Path, help="JSONL of more general texts to measure on (the first 300)")
    options = parser.parse_args()
    figures = measure(options)
    if options.json:
        print(json.dumps(figures))


def measure(options: argparse.Namespace) -> dict[str, Any]:
    from finetune_pipeline.evaluate import general_ability
    from finetune_pipeline.evaluate.general_ability import GeneralPrompt

    task, split, base = inputs(options.task)
    texts = {"general": general_ability.conversations(general_ability.prompts())}
    if options.texts:
        rows = [json.loads(line) for line in options.texts.read_text("utf-8").splitlines()[:300]]
        texts[options.texts.stem] = general_ability.conversations(
            [
                GeneralPrompt(id=str(n), kind="", prompt=row["prompt"], completion=row["completion"])
                for n, row in enumerate(rows)
            ]
        )
    runs: list[dict[str, Any]] = []
    head = f"{'seed':>4} {'way':<12}{'task loss':>10}{'right':>9}"
    print(f"{head}  {'rise of the general loss':<44}{'s a step':>9}{'ratio':>7}")
    for seed in range(1, options.rounds + 1):
        for way in options.ways:
            with tempfile.TemporaryDirectory() as folder:
                run = {"seed": seed, "way": way, **trained(way, seed, task, split, base, options, Path(folder))}
                run |= measured(task, split, base, Path(folder), texts, options.answers)
            first = next((r for r in runs if r["seed"] == seed and r["way"] == "nothing"), run)
            run["ratio"] = round(run["seconds_a_step"] / first["seconds_a_step"], 3)
            runs.append(run)
            show(run)
    for way in options.ways:
        mine = [run for run in runs if run["way"] == way]
        rises = [run["rise"]["general"][0] for run in mine]
        ratios = [run["ratio"] for run in mine]
        print(
            f"{way}: general loss {statistics.median(rises):+.1%} ({min(rises):+.1%} to {max(rises):+.1%}), "
            f"{statistics.median(ratios):.2f} times the time ({min(ratios):.2f} to {max(ratios):.2f})   {machine()}"
        )
    return {"machine": machine(), "task": options.task, "runs": runs}


def inputs(name: str) -> tuple[Any, Any, Path]:
    """The task, its split and the folder of its base model; makes what is missing up to the split."""
    from finetune_pipeline.graph import STEPS
    from finetune_pipeline.materialize import materialize, open_task
    from finetune_pipeline.models.model_source import folder_of

    task, store = open_task(name)
    for step in STEPS:
        artifact = materialize(step.asset, task, store)
        if step.asset == "data_split":
            break
    base = store.current("base_model")
    assert base is not None
    return task, artifact, folder_of(base, task.base, Silent())


def trained(
    way: str, seed: int, task: Any, split: Any, base: Path, options: argparse.Namespace, folder: Path
) -> dict[str, Any]:
    """Train one way; the adapter is saved in `folder`."""
    from finetune_pipeline.models.device import uses_bf16
    from finetune_pipeline.models.model_files import dimensions
    from finetune_pipeline.train import assembly, checkpoint
    from finetune_pipeline.train.defaults import with_defaults
    from finetune_pipeline.train.spec import TrainingSpec

    changed: dict[str, Any] = {"seed": seed, "checkpoint_seconds": 1e9}
    changed |= {"num_epochs": options.epochs} if options.epochs else {}
    weight = 0.0 if way == "nothing" else options.weight
    keep = {**task.train.keep_general.model_dump(), **({} if weight is None else {"weight": weight})}
    declared = Train.model_validate({**task.train.model_dump(), **changed, "keep_general": keep})
    rules, _ = with_defaults(declared, dimensions(base)["parameters"])
    spec = TrainingSpec(
        task=task.name,
        base=base,
        base_id="base",
        train=split.path("train.jsonl"),
        validation=split.path("validation.jsonl"),
        system=task.prompt.system,
        answer=task.answer,
        rules=rules,
        checkpoints=folder,
        out=folder,
        params={},
        dataset_name=task.name,
        dataset_digest=split.content_hash,
    )
    made = assembly.assemble(spec)
    made.measure_base()
    replay = made.replay
    if replay and way == "rehearsal":
        bf16 = uses_bf16(rules.precision)

        def rehearsed(step: int, states: Any, own: Any = None) -> Any:
            return learned(own or replay.texts_at(step), states, made.forward, bf16)

        replay.divergence = rehearsed  # type: ignore[method-assign]
    ticks: list[float] = []
    state = checkpoint.TrainingState()
    loop = made.loop(folder, Silent(), lambda metrics, step: ticks.append(time.perf_counter()))
    loop.run(made.rows["train"], made.rows["validation"], state, made.optimizer)
    made.trainable.save(folder, "base", made.base.tokenizer)
    loss = [line["validation_loss"] for line in state.history if "validation_loss" in line][-1]
    seconds = [later - earlier for earlier, later in pairwise(ticks)]
    return {"steps": state.step, "task_loss": round(loss, 4), "seconds_a_step": round(statistics.median(seconds), 3)}


def learned(texts: Any, states: Any, forward: Any, bf16: bool) -> Any:
    """Rehearsal: mean negative log likelihood (nats per token) of the texts; `states`: the tuned model's."""
    from finetune_pipeline.models.device import autocast
    from finetune_pipeline.train.forward import targets

    with autocast(bf16):
        return forward.token_losses(states, targets(texts)).mean()


def measured(
    task: Any, split: Any, base: Path, adapter: Path, texts: Mapping[str, Any], answer: bool
) -> dict[str, Any]:
    """Rise of the loss on every set of texts with its bounds, and the validation rows that are exactly right."""
    from finetune_pipeline.baseline import metrics
    from finetune_pipeline.baseline.prompts import prompts
    from finetune_pipeline.inference.generate import Generation, generate
    from finetune_pipeline.inference.likelihood import losses
    from finetune_pipeline.inference.loading import base_only, load
    from finetune_pipeline.release.relative_change import relative_rise

    loaded = load(base, adapter)
    figures: dict[str, Any] = {"rise": {}, "right": None, "rows": 0}
    for name, rows in texts.items():
        after = losses(loaded, rows)
        with base_only(loaded):
            before = losses(loaded, rows)
        rise = relative_rise([before[key] for key in before], [after[key] for key in before], RISK, 0)
        figures["rise"][name] = [round(value, 4) for value in (rise.rise, rise.low, rise.high)]
    if answer:
        rows = {row.id: row for row in split.examples("validation.jsonl")}
        chats = prompts("tuned", [], list(rows.values()), task.prompt.system, task.answer, 1)
        answers = generate(loaded, chats, task.answer, Generation("tuned", 64))
        figures["right"] = sum(metrics.score(rows[row.id], row, task.answer).exact for row in answers)
        figures["rows"] = len(rows)
    return figures


def show(run: Mapping[str, Any]) -> None:
    rises = "; ".join(f"{name} {r:+.1%} ({low:+.1%} to {high:+.1%})" for name, (r, low, high) in run["rise"].items())
    right = f"{run['right']}/{run['rows']}" if run["right"] is not None else ""
    print(
        f"{run['seed']:>4} {run['way']:<12}{run['task_loss']:>10.4f}{right:>9}  {rises:<44}"
        f"{run['seconds_a_step']:>9.2f}{run['ratio']:>7.2f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
