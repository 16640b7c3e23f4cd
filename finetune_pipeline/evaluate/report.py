"""report.html: what was compared, on how many rows, and what came out; one page that a manager can read. Pure.

    html = page(Facts(...))

One file: no scripts, nothing from the internet, styles and pictures (SVG) inside, for light and dark screens. All that
a person or a model wrote is escaped (Jinja2's autoescape is on for the whole template).

What it is not: where figures come from (metrics.py, assets.py); every one on the page stands in report.json.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finetune_pipeline.records import Answer, Example, Score
from finetune_pipeline.statistics.formatting import percent

SHOWN = 10  # examples of each kind
LABELS = {
    "zero_shot": ("Base model, instruction only", "The untuned model gets the task's system prompt and the question."),
    "few_shot": ("Base model, fixed examples", "The same training examples stand before every question."),
    "few_shot_retrieved": (
        "Base model, fitting examples",
        "The training examples most like the question stand before it.",
    ),
    "classical": ("Classical model", "TF-IDF and logistic regression: no language model at all."),
    "champion": ("Live version", "The version that the endpoint serves now, asked as it is served."),
    "tuned": ("Tuned model", "The base model with the trained adapter, asked without examples."),
}


@dataclass(frozen=True)
class Facts:
    """`figures` is report.json; `tests` the rows, `answers` and `scores` of all variants; `made_at` UTC, ISO 8601."""

    task: str
    description: str
    base: str
    made_at: str
    figures: Mapping[str, Any]
    tests: Sequence[Example]
    answers: Sequence[Answer]
    scores: Sequence[Score]


@dataclass(frozen=True, slots=True)
class Case:
    """One row side by side: what was asked, what is right, what the tuned model and the best prompt said."""

    id: str
    prompt: str
    reference: str
    tuned: str
    prompted: str


def page(facts: Facts) -> str:
    """The whole page."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("finetune_pipeline.evaluate", "."), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {"percent": percent, "label": label}
    variants, best = facts.figures["variants"], facts.figures["best_prompted"]
    text: str = environment.get_template("report.html.j2").render(
        facts=facts,
        figures=facts.figures,
        variants=[(name, *LABELS.get(name, (name, "")), figure) for name, figure in variants.items()],
        headline=headline(facts.figures),
        shown=[name for name in (best, "classical", "champion", "tuned") if name in variants],
        fields=list(dict.fromkeys(f for figure in variants.values() for f in figure["fields"])),
        slices=sorted({s for figure in variants.values() for s in figure["slices"]}),
        cases=cases(facts) if "tuned" in variants else {},
    )
    return text


def headline(figures: Mapping[str, Any]) -> str:
    """The result in a sentence or two, without judging it: that is the release decision's part."""
    variants, best, rows = figures["variants"], figures["best_prompted"], figures["rows"]
    told = []
    if "tuned" in variants:
        told.append(f"The tuned model answers {_exactly(variants['tuned'])} of {rows} test rows exactly right.")
    if best:
        told.append(f"The best prompt ({label(best).lower()}) reaches {_exactly(variants[best])}.")
    if "champion" in variants:
        told.append(f"Live version {figures['champion']['version']} reaches {_exactly(variants['champion'])}.")
    if "classical" in variants:
        told.append(f"A classical model reaches {_exactly(variants['classical'])}.")
    return " ".join(told)


def _exactly(figure: Mapping[str, Any]) -> str:
    low, high = figure["interval"]
    count = round(figure["exact"] * figure["rows"])
    return f"{count} ({percent(figure['exact'])}; 95 % interval {percent(low)} to {percent(high)})"


def cases(facts: Facts) -> dict[str, list[Case]]:
    """Rows the tuned model gets wrong, and rows that it alone gets right: the first ten of each in the test's order."""
    best = facts.figures["best_prompted"]
    text = {(a.variant, a.id): a.text for a in facts.answers}
    right = {(s.variant, s.id): s.exact for s in facts.scores}

    def case(row: Example) -> Case:
        return Case(row.id, row.prompt, row.completion, text["tuned", row.id], text.get((best, row.id), ""))

    wrong = [row for row in facts.tests if not right["tuned", row.id]]
    better = [row for row in facts.tests if right["tuned", row.id] and right.get((best, row.id)) is False]
    return {"wrong": [case(row) for row in wrong[:SHOWN]], "better": [case(row) for row in better[:SHOWN]]}


def label(variant: str) -> str:
    return LABELS.get(variant, (variant, ""))[0]
