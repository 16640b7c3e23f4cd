"""The plan of a training against the training: peak memory and time, predicted and measured, for several settings.

    python benchmarks/memory.py [--only lora qlora] [--rows 64] [--time-rows 600] [--model FOLDER] [--json]

Each setting is planned and trained on the sample task's rows by this pipeline's jobs, each in a process of its own, on
the device at hand. Short trainings (`--rows`) show the memory; the plan then measures no step. The last setting trains
on `--time-rows` rows, long enough that the plan measures steps, and shows the time as well.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from machine import machine
from sample_task import DATA, sample_rows
from training_job import examples, training_spec

SETTINGS: dict[str, dict[str, Any]] = {
    "lora": {},
    "lora of 12 layers": {"layers": 12},
    "lora, small passes": {"max_tokens_per_batch": 512},
    "lora, checkpointing": {"gradient_checkpointing": True},
    "lora, batch 64": {"batch_size": 64},
    "qlora": {"method": "qlora"},
    "full": {"method": "full"},
    "full, adamw_8bit": {"method": "full", "optimizer": "adamw_8bit"},
    "dpo": {"objective": "dpo"},
}
MEASURED = "lora, long"


@dataclass(frozen=True)
class Row:
    """One setting; MB and seconds, predicted and measured."""

    name: str
    predicted_mb: float
    measured_mb: float
    predicted_seconds: float | None = None
    measured_seconds: float | None = None

    def shown(self) -> str:
        memory = self.predicted_mb / self.measured_mb - 1
        text = f"{self.name:<22} {self.predicted_mb:>8,.0f} {self.measured_mb:>9,.0f} MB {memory:>+7.1%}"
        if self.predicted_seconds is None or self.measured_seconds is None:
            return text
        time_ = self.predicted_seconds / self.measured_seconds - 1
        return f"{text}   {self.predicted_seconds:>7,.0f} {self.measured_seconds:>9,.0f} s {time_:>+7.1%}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[*SETTINGS, MEASURED], metavar="NAME", help="settings")
    parser.add_argument("--rows", type=int, default=64, help="training rows of a setting")
    parser.add_argument("--time-rows", type=int, default=600, help="training rows of the last setting")
    parser.add_argument("--model", type=Path, help="folder of the model; default: the sample task's base model")
    parser.add_argument("--json", action="store_true", help="one JSON object of figures on the last line")
    options = parser.parse_args()
    print(f"{'':<22} predicted  measured")
    rows = []
    with tempfile.TemporaryDirectory(prefix="memory-") as folder:
        os.environ["FINETUNE_HOME"] = str(Path(folder) / "home")
        for number, name in enumerate(options.only):
            rows.append(measure(name, Path(folder) / str(number), options))
            print(rows[-1].shown(), flush=True)
    print(machine())
    if options.json:
        print(json.dumps({"machine": machine(), "rows": [row.__dict__ for row in rows]}))


def measure(name: str, folder: Path, options: argparse.Namespace) -> Row:
    from finetune_pipeline.backends import local
    from finetune_pipeline.records import Silent
    from finetune_pipeline.train.plan.spec import PlanSpec, TrainingPlan
    from finetune_pipeline.train.spec import TrainingResult

    count = options.time_rows if name == MEASURED else options.rows
    training = spec_of(folder, SETTINGS.get(name, {}), count, options.model)
    threads = training.rules.threads
    planned = PlanSpec(training, folder / "plan")
    planned.folder.mkdir()
    plan = local.run("finetune_pipeline.train.plan.job", planned, TrainingPlan, planned.folder, Silent(), threads)
    began = time.monotonic()
    job = folder / "job"
    result = local.run("finetune_pipeline.train.job", training, TrainingResult, job, Silent(), threads)
    seconds = time.monotonic() - began
    memory = plan.fit.memory.total_mb
    if name != MEASURED:
        return Row(name, memory, result.peak_mb)
    return Row(name, memory, result.peak_mb, plan.times.total, seconds)


def spec_of(folder: Path, settings: dict[str, Any], count: int, model: Path | None) -> Any:
    """The training of `count` rows; an eighth as many are validation rows."""
    from finetune_pipeline.config import Train, load_task

    task, found = load_task(DATA), examples_of(sample_rows(), pairs="objective" in settings)
    validation = max(1, count // 8)
    rules = Train.model_validate({"num_epochs": 1, "learning_rate": 1e-4, **settings})
    rows = found[validation : validation + count]
    return training_spec(
        "memory", folder, rows, found[:validation], rules, system=task.prompt.system, answer=task.answer, model=model
    )


def examples_of(rows: Sequence[tuple[str, str]], pairs: bool) -> list[Any]:
    """The rows as examples; with `pairs`, the completion of another row is the rejected one."""
    others = [completion for _, completion in (*rows[1:], rows[0])]
    return [
        replace(example, rejected=other) if pairs and other != example.completion else example
        for example, other in zip(examples(rows), others, strict=True)
    ]


if __name__ == "__main__":
    main()
