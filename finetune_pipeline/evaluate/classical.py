"""The classical model: TF-IDF of words and character n-grams, and logistic regression. Trained in seconds.

A tuned language model that does not beat this should not be shipped, however good it looks beside a prompt.

- label: one classifier.
- json: one classifier for each top-level field with few values. A field with many (an order number) always gets its
  most frequent value: such a field is a matter of reading, not of classifying, and the report shows what that costs.
- text: none; there is nothing to classify.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from finetune_pipeline.clean.answers import dump, load
from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.evaluate.metrics import canonical
from finetune_pipeline.records import Answer, Example, Reporter

MOST_VALUES = 100  # a field with more different values is not classified
ROWS_PER_VALUE = 3  # nor one with fewer rows per value on average
VARIANT = "classical"


def applies(spec: AnswerFormat) -> bool:
    return spec.format in ("json", "label")


def answers(train: Sequence[Example], tests: Sequence[Example], spec: AnswerFormat, report: Reporter) -> list[Answer]:
    """Learn from `train` and answer `tests`. Seconds are those of answering, shared by all rows. JobCancelled between
    two fields."""
    report.alive()
    vectors = _vectorizer()
    known = vectors.fit_transform([row.prompt for row in train])
    fields, models = _values(train, spec), dict[str, Any]()
    for name, values in fields.items():
        report.alive()
        report.progress("fields of the classical model", len(models), len(fields))
        models[name] = _learn(known, values)
    report.progress("fields of the classical model", len(models), len(fields))
    start = time.perf_counter()
    asked = vectors.transform([row.prompt for row in tests])
    said = {name: model.predict(asked) for name, model in models.items()}
    seconds = (time.perf_counter() - start) / max(len(tests), 1)
    texts = [_text({name: said[name][i] for name in said}, spec) for i in range(len(tests))]
    return [Answer(row.id, VARIANT, text, seconds=round(seconds, 6)) for row, text in zip(tests, texts, strict=True)]


def _vectorizer() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    return make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=2),
    )


def _values(train: Sequence[Example], spec: AnswerFormat) -> dict[str, list[str]]:
    """For each field the value of every training row, as JSON. A label is a single field without a name."""
    if spec.format == "label":
        return {"": [canonical(row.completion.strip()) for row in train]}
    objects = [_object(row.completion) for row in train]
    names = dict.fromkeys(name for value in objects for name in value)
    return {name: [canonical(value[name]) if name in value else "" for value in objects] for name in names}


def _object(text: str) -> dict[str, Any]:
    value = load(text)
    return value if isinstance(value, dict) else {}


def _learn(known: Any, values: list[str]) -> Any:
    """A classifier of one field; one that always gives the most frequent value where there is nothing to classify."""
    from sklearn.dummy import DummyClassifier
    from sklearn.linear_model import LogisticRegression

    counts = Counter(values)
    many = len(counts) > MOST_VALUES or len(values) < ROWS_PER_VALUE * len(counts)
    if len(counts) == 1 or many:
        return DummyClassifier(strategy="most_frequent").fit(known, values)
    return LogisticRegression(C=10.0, max_iter=300).fit(known, values)


def _text(fields: dict[str, str], spec: AnswerFormat) -> str:
    values = {name: load(value) for name, value in fields.items() if value}
    return str(values.get("", "")) if spec.format == "label" else dump(values)
