"""Trainings of the benchmarks: rows of a CSV file, the description of the job, and the answers of what it trained.

rows = read(Path("banking77/train.csv"))                     # [(input, completion), …]
spec = training_spec("intents", folder, examples(rows), validation, rules, system="Name the intent.")
right = answered(spec.base, spec.out, spec.system, test)     # [True, False, …]
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sample_task import sample_model

Row = tuple[str, str]
FIELD = re.compile(r"([^,\[\]]+)\[([^\]]*)\]")


def read(path: Path, columns: Sequence[str] = ()) -> list[Row]:
    """Two columns of a CSV file; the first two where none are named."""
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        given, wanted = columns or list(reader.fieldnames or ())[:2]
        return [(row[given].strip(), row[wanted].strip()) for row in reader]


def without(rows: Sequence[Row], others: Sequence[Row]) -> list[Row]:
    """The rows whose text is in none of the others, each text once."""

    def folded(text: str) -> str:
        return " ".join(re.findall(r"\w+", text.casefold()))

    seen = {folded(text) for text, _ in others}
    kept = []
    for text, completion in rows:
        if folded(text) not in seen:
            seen.add(folded(text))
            kept.append((text, completion))
    return kept


def settings_of(given: Sequence[str]) -> dict[str, Any]:
    """["num_epochs=2"] as {"num_epochs": 2}."""
    return {name: json.loads(value) for name, _, value in (each.partition("=") for each in given)}


def examples(rows: Sequence[Row]) -> list[Any]:
    from finetune_pipeline.records import Example, Message

    return [
        Example(str(n), (Message("user", text), Message("assistant", completion)), "benchmark", str(n))
        for n, (text, completion) in enumerate(rows)
    ]


def training_spec(
    name: str,
    folder: Path,
    train: Sequence[Any],
    validation: Sequence[Any],
    rules: Any,
    *,
    system: str = "",
    answer: Any = None,
    model: Path | None = None,
) -> Any:
    """The description of a training (`rules`: config.Train) of examples, whose files are in `folder`; `answer`: its
    format, free text by default; `model`: the sample task's base model by default."""
    from finetune_pipeline.config import AnswerFormat
    from finetune_pipeline.records.jsonl import write_jsonl
    from finetune_pipeline.train.spec import TrainingSpec

    for part in ("job", "out"):
        (folder / part).mkdir(parents=True)
    write_jsonl(folder / "train.jsonl", train)
    write_jsonl(folder / "validation.jsonl", validation)
    return TrainingSpec(
        task=f"benchmark_{name}",
        base=model or sample_model(),
        base_id="benchmark",
        train=folder / "train.jsonl",
        validation=folder / "validation.jsonl",
        system=system,
        answer=answer or AnswerFormat(),
        rules=rules,
        checkpoints=folder / "job" / "steps",
        out=folder / "out",
        params={},
        dataset_name="benchmark",
        dataset_digest="benchmark",
    )


def answered(base: Path, trained: Path, system: str, test: Sequence[Row], labels: Sequence[str] = ()) -> list[bool]:
    """Which of the test rows the trained model answers right; with `labels`, it chooses one of them."""
    from finetune_pipeline.config import AnswerFormat
    from finetune_pipeline.inference.answerer import LocalModel
    from finetune_pipeline.inference.generate import Generation
    from finetune_pipeline.inference.loading import load

    loaded = load(base, trained)
    chats = {
        str(n): [{"role": "system", "content": system}, {"role": "user", "content": text}]
        for n, (text, _) in enumerate(test)
    }
    tokens = loaded.tokenizer([completion for _, completion in test], add_special_tokens=False)["input_ids"]
    settings = Generation("tuned", 2 + max(map(len, tokens)))
    answers = LocalModel(loaded, AnswerFormat()).answer(chats, settings, labels=labels)
    texts = {answer.id: answer.text for answer in answers}
    return [same(texts[str(n)], completion) for n, (_, completion) in enumerate(test)]


def same(answer: str, expected: str) -> bool:
    """Equal as text, as JSON, or as a list of fields in any order."""
    if FIELD.search(expected):
        return sorted(FIELD.findall(answer.replace(", ", ","))) == sorted(FIELD.findall(expected.replace(", ", ",")))
    try:
        return bool(json.loads(answer) == json.loads(expected))
    except ValueError:
        return answer.strip() == expected.strip()
