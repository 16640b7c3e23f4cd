"""What a training reaches on public data, with the time and memory it took.

    python benchmarks/quality.py intents --train banking77/train.csv --test banking77/test.csv
    python benchmarks/quality.py cleaning --train e2e_cleaned/devel-fixed.no-ol.csv --test e2e_cleaned/test-fixed.csv
    python benchmarks/quality.py preferences --train hh_harmless_test/test.jsonl
    python benchmarks/quality.py methods [--train banking77/train.csv --test banking77/test.csv] [--rows 1000]

intents      accuracy on all test rows, after training on every row that is neither a duplicate nor a test row; the
             peer is naive Bayes on words and pairs of words
cleaning     the same rows twice, with the noisy and with the fixed meaning representation as the completion: test rows
             whose answer has the right fields, and the difference that the fixed column makes
preferences  DPO on 2,000 pairs, reward accuracy on 300 held-out ones
methods      lora, qlora and full on the same rows: accuracy, seconds, memory. Without a file: the sample task's rows

Training is this pipeline's job in a process of its own (the loop, MLflow included), answers come from its decoder. Rows
of a validation split are taken from the training rows. Intervals: 95 %, exact (Clopper and Pearson); of a difference,
Tango's score interval. --seeds repeats everything; --set changes a setting of the training (num_epochs=2).
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import re
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from machine import machine
from sample_task import DATA, sample_rows
from training_job import Row, answered, examples, read, settings_of, training_spec, without

CONFIDENCE = 0.95
INTENT = "Name the intent of the customer's message."
MEANING = "Write the facts of the sentence about a place as a list: name[value], name[value]."
SETTINGS: dict[str, dict[str, Any]] = {
    "intents": {"num_epochs": 3, "batch_size": 32, "learning_rate": 1e-3},
    "cleaning": {"num_epochs": 2, "batch_size": 32, "learning_rate": 1e-3},
    "preferences": {"objective": "dpo", "num_epochs": 1, "batch_size": 16, "learning_rate": 1e-4},
    "methods": {"num_epochs": 2, "batch_size": 16},
}
# a rate that suits the method: full weights need a smaller one
RATES = {"lora": 1e-3, "qlora": 1e-3, "full": 1e-4}


@dataclass(frozen=True)
class Trained:
    """`spec`: of the training; `result`: training.json."""

    spec: Any
    result: Any
    seconds: float


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=sorted(SETTINGS))
    parser.add_argument("--train", type=Path)
    parser.add_argument("--test", type=Path)
    parser.add_argument("--model", type=Path, help="folder of the model; default: the sample task's base model")
    parser.add_argument("--rows", type=int, help="only so many training rows")
    parser.add_argument("--seeds", type=int, default=1, help="how many repetitions")
    parser.add_argument("--set", nargs="*", default=[], metavar="NAME=VALUE", help="settings of the training")
    parser.add_argument("--json", action="store_true", help="one JSON object of figures on the last line")
    options = parser.parse_args()
    functions = {"intents": intents, "cleaning": cleaning, "preferences": preferences, "methods": methods}
    with tempfile.TemporaryDirectory(prefix="quality-") as folder:
        os.environ["FINETUNE_HOME"] = str(Path(folder) / "home")
        runs = [
            {"seed": seed, **functions[options.what](options, seed, Path(folder) / str(seed))}
            for seed in range(1, options.seeds + 1)
        ]
    print(machine())
    if options.json:
        print(json.dumps({"machine": machine(), "what": options.what, "runs": runs}))


def intents(options: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    test, train = read(options.test), without(read(options.train), read(options.test))
    train = train[: options.rows]
    labels = sorted({label for _, label in train})
    print(f"{len(train)} training rows, {len(test)} test rows, {len(labels)} labels")
    floor = naive_bayes(train, test)
    print(f"naive Bayes   {shown(floor)}", flush=True)
    trained, answer = fit(options, seed, folder, train, INTENT, labels)
    right = answer(test)
    print(f"tuned         {shown(right)}   {about(trained)}", flush=True)
    return {"rows": len(train), "naive_bayes": share(floor), "accuracy": share(right), **facts(trained)}


def cleaning(options: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    from finetune_pipeline.release.paired_tests import difference_bounds, paired

    with options.train.open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))[: options.rows]
    with options.test.open(encoding="utf-8", newline="") as file:
        test = [(row["ref"], row["mr"]) for row in csv.DictReader(file)]
    texts = {text for text, _ in test}
    lines = [row for row in lines if row["ref"] not in texts]
    right: dict[str, dict[str, bool]] = {}
    for name, column in (("noisy", "orig_mr"), ("fixed", "mr")):
        rows = [(row["ref"], row[column]) for row in lines]
        trained, answer = fit(options, seed, folder / name, rows, MEANING, ())
        right[name] = {str(n): value for n, value in enumerate(answer(test))}
        print(f"{name}   {shown(list(right[name].values()))}   {about(trained)}", flush=True)
    pair = paired(right["fixed"], right["noisy"])
    low, high = difference_bounds(pair, CONFIDENCE)
    print(f"fixed - noisy: {pair.difference:+.1%} ({low:+.1%} to {high:+.1%})")
    return {
        "rows": len(lines),
        **{name: share(list(values.values())) for name, values in right.items()},
        "difference": [round(value, 4) for value in (pair.difference, low, high)],
    }


def preferences(options: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    from finetune_pipeline.records import Example
    from finetune_pipeline.statistics.proportion import clopper_pearson

    rows = [json.loads(line) for line in options.train.read_text("utf-8").splitlines()]
    pairs = [pair for n, row in enumerate(rows) if (pair := dialogue(str(n), row["chosen"], row["rejected"]))]
    by_prompt: dict[str, list[Example]] = {}
    for pair in pairs:
        by_prompt.setdefault(pair.prompt, []).append(pair)
    groups = list(by_prompt.values())
    random.Random(seed).shuffle(groups)
    shuffled = [pair for group in groups for pair in group]
    held_out, train = shuffled[:300], shuffled[300:][: options.rows or 2000]
    train = [row for row in train if row.prompt not in {pair.prompt for pair in held_out}]
    trained = train_job(options, {}, seed, folder, train, held_out, "", ())
    value = trained.result.validation_reward_accuracy
    low, high = clopper_pearson(round(value * len(held_out)), len(held_out), CONFIDENCE)
    print(f"{len(train)} pairs, {len(held_out)} held out; reward accuracy {value:.3f} ({low:.3f} to {high:.3f})")
    print(about(trained), flush=True)
    return {"rows": len(train), "reward_accuracy": [value, low, high], **facts(trained)}


def methods(options: argparse.Namespace, seed: int, folder: Path) -> dict[str, Any]:
    from finetune_pipeline.config import load_task

    if options.train:
        test = read(options.test)
        train, system = without(read(options.train), test), INTENT
        random.Random(seed).shuffle(train)
        labels: Sequence[str] = sorted({label for _, label in train})
    else:
        train, system, labels = sample_rows(), load_task(DATA).prompt.system, ()
        random.Random(seed).shuffle(train)
        train, test = train[len(train) // 5 :], train[: len(train) // 5]
    train, figures = train[: options.rows], {}
    for method, rate in RATES.items():
        changed = {"method": method, "learning_rate": rate}
        trained, answer = fit(options, seed, folder / method, train, system, labels, changed)
        right = answer(test)
        print(f"{method:<6} {shown(right)}   {about(trained)}", flush=True)
        figures[method] = {"accuracy": share(right), **facts(trained)}
    return {"rows": len(train), **figures}


def fit(
    options: argparse.Namespace,
    seed: int,
    folder: Path,
    rows: Sequence[Row],
    system: str,
    labels: Sequence[str],
    changed: Mapping[str, Any] | None = None,
) -> tuple[Trained, Any]:
    """Train on the rows, a twentieth of which (at most 200) are validation rows; a function that answers test rows, and
    says which answers are right."""
    found = examples(rows)
    random.Random(seed).shuffle(found)
    count = min(200, len(found) // 20)
    trained = train_job(options, changed or {}, seed, folder, found[count:], found[:count], system, labels)
    return trained, lambda test: answered(trained.spec.base, trained.spec.out, system, test, labels)


def train_job(
    options: argparse.Namespace,
    changed: Mapping[str, Any],
    seed: int,
    folder: Path,
    train: Sequence[Any],
    validation: Sequence[Any],
    system: str,
    labels: Sequence[str],
) -> Trained:
    from finetune_pipeline.backends import local
    from finetune_pipeline.config import AnswerFormat, Train
    from finetune_pipeline.records import Silent
    from finetune_pipeline.train.spec import TrainingResult

    rules = Train.model_validate({**SETTINGS[options.what], **changed, **settings_of(options.set), "seed": seed})
    answer = AnswerFormat(format="label", labels=tuple(labels)) if labels else None
    spec = training_spec(
        options.what, folder, train, validation, rules, system=system, answer=answer, model=options.model
    )
    start = time.monotonic()
    result = local.run("finetune_pipeline.train.job", spec, TrainingResult, folder / "job", Silent(), rules.threads)
    return Trained(spec, result, time.monotonic() - start)


def naive_bayes(train: Sequence[Row], test: Sequence[Row]) -> list[bool]:
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.naive_bayes import MultinomialNB
    from sklearn.pipeline import make_pipeline

    model = make_pipeline(CountVectorizer(ngram_range=(1, 2), binary=True), MultinomialNB(alpha=0.1))
    model.fit([text for text, _ in train], [label for _, label in train])
    return [bool(a == b) for a, (_, b) in zip(model.predict([text for text, _ in test]), test, strict=True)]


def dialogue(key: str, chosen: str, rejected: str) -> Any:
    """A row of the preference data ("Human: … Assistant: …") as a pair; None where the two do not share their turns."""
    from finetune_pipeline.records import Example, Message

    turns = [part for part in re.split(r"\n\n(Human|Assistant): ", chosen) if part]
    others = [part for part in re.split(r"\n\n(Human|Assistant): ", rejected) if part]
    if turns[:-1] != others[:-1] or turns[-2] != "Assistant" or not turns[-1].strip() or not others[-1].strip():
        return None
    roles: dict[str, Any] = {"Human": "user", "Assistant": "assistant"}
    messages = tuple(Message(roles[role], text.strip()) for role, text in zip(turns[::2], turns[1::2], strict=True))
    if [message.role for message in messages] != ["user", "assistant"] * (len(messages) // 2):
        return None
    return Example(key, messages, "benchmark", key, rejected=others[-1].strip())


def share(right: Sequence[bool]) -> list[float]:
    from finetune_pipeline.statistics.proportion import clopper_pearson

    low, high = clopper_pearson(sum(right), len(right), CONFIDENCE)
    return [round(value, 4) for value in (statistics.mean(right), low, high)]


def shown(right: Sequence[bool]) -> str:
    value, low, high = share(right)
    return f"{value:.1%} ({low:.1%} to {high:.1%})"


def facts(trained: Trained) -> dict[str, Any]:
    return {
        "seconds": round(trained.seconds, 1),
        "peak_mb": trained.result.peak_mb,
        "steps": trained.result.steps,
        "validation_loss": round(trained.result.validation_loss, 4),
    }


def about(trained: Trained) -> str:
    minutes, seconds = divmod(round(trained.seconds), 60)
    return f"{minutes} min {seconds:02} s, {trained.result.steps} steps, {trained.result.peak_mb:,} MB"


if __name__ == "__main__":
    main()
