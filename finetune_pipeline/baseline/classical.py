"""The classical baseline: TF-IDF of words and character n-grams, and logistic regression (scikit-learn).

    answers(train, tests, task.answer, report)       # [Answer("9f1c…", "classical", "delivery", seconds=0.0001), ...]

Training takes seconds. A tuned language model that is no better than this one is not worth its cost, whatever it gains
over a prompt.

- label: one classifier.
- json: one classifier for each top-level field with few values. A field with many values (an order number) always gets
  its most frequent value: it has to be extracted from the prompt, which a classifier cannot do. The report's table of
  fields shows what that costs.
- text: not supported; there are no classes.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

from finetune_pipeline.baseline.metrics import canonical, json_object
from finetune_pipeline.baseline.variants import CLASSICAL
from finetune_pipeline.clean.answers import dump, load
from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.records import Answer, Example, Reporter

MAX_VALUES = 100  # a field with more different values is not classified
MIN_ROWS_PER_VALUE = 3  # nor is a field with fewer rows per value on average


def applies(spec: AnswerFormat) -> bool:
    """Whether answers of this format can be classified."""
    return spec.format in ("json", "label")


def answers(train: Sequence[Example], tests: Sequence[Example], spec: AnswerFormat, report: Reporter) -> list[Answer]:
    """Fit on `train` and answer `tests`, in their order. `Answer.seconds` is the time of prediction divided by the
    number of rows. JobCanceled between two fields."""
    report.alive()
    vectorizer = _vectorizer()
    features = vectorizer.fit_transform([row.prompt for row in train])
    fields, models = _field_values(train, spec), dict[str, Any]()
    for name, values in fields.items():
        report.alive()
        report.progress("fields of the classical model", len(models), len(fields))
        models[name] = _fit(features, values)
    report.progress("fields of the classical model", len(models), len(fields))
    start = time.perf_counter()
    test_features = vectorizer.transform([row.prompt for row in tests])
    predicted = {name: model.predict(test_features) for name, model in models.items()}
    seconds = (time.perf_counter() - start) / max(len(tests), 1)
    texts = [_text({name: predicted[name][i] for name in predicted}, spec) for i in range(len(tests))]
    return [Answer(row.id, CLASSICAL, text, seconds=round(seconds, 6)) for row, text in zip(tests, texts, strict=True)]


def _vectorizer() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.pipeline import make_union

    return make_union(
        TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True),
        TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True, min_df=2),
    )


def _field_values(train: Sequence[Example], spec: AnswerFormat) -> dict[str, list[str]]:
    """Field -> its value in every training row, as JSON; "" where the row lacks it. A label is one field named ""."""
    if spec.format == "label":
        return {"": [canonical(row.completion.strip()) for row in train]}
    objects = [json_object(row.completion) for row in train]
    names = dict.fromkeys(name for value in objects for name in value)
    return {name: [canonical(value[name]) if name in value else "" for value in objects] for name in names}


def _fit(features: Any, values: list[str]) -> Any:
    """A classifier of one field; the most frequent value always, where the field has one value or too many."""
    from sklearn.dummy import DummyClassifier
    from sklearn.linear_model import LogisticRegression

    counts = Counter(values)
    too_many = len(counts) > MAX_VALUES or len(values) < MIN_ROWS_PER_VALUE * len(counts)
    if len(counts) == 1 or too_many:
        return DummyClassifier(strategy="most_frequent").fit(features, values)
    return LogisticRegression(C=10.0, max_iter=300).fit(features, values)


def _text(fields: dict[str, str], spec: AnswerFormat) -> str:
    values = {name: load(value) for name, value in fields.items() if value}
    return str(values.get("", "")) if spec.format == "label" else dump(values)
