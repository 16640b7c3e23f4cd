"""report.json and report.html of the baselines: what prompts and a classical model reach on the test rows.

    {"rows": 104, "best_prompted": "few_shot", "max_new_tokens": 53,
     "variants": {"few_shot": {"rows": 104, "exact": 0.41, "interval": [0.32, 0.51], "valid": 0.99, ...}}}

    html = page(Heading("support_tickets", "…", "SmolLM2-135M-Instruct", at), report)

The page is one file: no scripts, nothing from the internet, styles and charts (SVG) inside, for light and dark screens.
All text that a person or a model wrote is escaped (Jinja2's autoescape). The evaluation's page extends this template.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from finetune_pipeline.baseline.figures import VariantFigures, best_prompted, variant_figures
from finetune_pipeline.baseline.metrics import EXACT, METRICS, VALID
from finetune_pipeline.baseline.variants import CLASSICAL, described, title
from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.records import Answer, Example, Score
from finetune_pipeline.statistics.formatting import percent

PACKAGE = "finetune_pipeline.baseline"


class BaselineReport(TypedDict):
    """report.json. `best_prompted`: the prompted variant with the most exact answers, None where none is declared."""

    rows: int
    variants: dict[str, VariantFigures]
    best_prompted: str | None
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class Heading:
    """What stands above the figures. `base`: the base model's name; `made_at`: UTC, ISO 8601."""

    task: str
    description: str
    base: str
    made_at: str


def compile_report(
    tests: Sequence[Example],
    answers: Sequence[Answer],
    scores: Sequence[Score],
    variants: Sequence[str],
    spec: AnswerFormat,
    max_new_tokens: int,
) -> BaselineReport:
    """The figures of every variant on the test rows."""
    rows = {row.id: row for row in tests}
    figures = {
        name: variant_figures(
            rows, [a for a in answers if a.variant == name], [s for s in scores if s.variant == name], spec
        )
        for name in variants
    }
    return {
        "rows": len(tests),
        "variants": figures,
        "best_prompted": best_prompted({name: variant["exact"] for name, variant in figures.items()}),
        "max_new_tokens": max_new_tokens,
    }


def page(heading: Heading, report: BaselineReport) -> str:
    """report.html of the baselines."""
    shown = (report["best_prompted"], CLASSICAL)
    return render(PACKAGE, "report.html.j2", heading, report, headline(report), shown, cost=None)


def render(
    package: str,
    template: str,
    heading: Heading,
    report: BaselineReport,
    lead: str,
    slice_columns: Sequence[str | None],
    **values: Any,
) -> str:
    """A template of `package`, which may extend one of this package. `lead`: the result in a sentence or two;
    `slice_columns`: the variants in the table of slices, the last one with a bar."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loader = ChoiceLoader([PackageLoader(name, ".") for name in dict.fromkeys((package, PACKAGE))])
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.filters |= {"percent": percent, "title_of": title}
    variants = report["variants"]
    measured = {name for figures in variants.values() for name in figures["metrics"]}
    text: str = environment.get_template(template).render(
        heading=heading,
        report=report,
        lead=lead,
        variants=[(name, described(name), figures) for name, figures in variants.items()],
        metrics=[metric for metric in METRICS if metric.name in measured],
        exact=EXACT,
        valid=VALID,
        fields=list(dict.fromkeys(field for figures in variants.values() for field in figures["fields"])),
        slices=sorted({name for figures in variants.values() for name in figures["slices"]}),
        slice_columns=[name for name in slice_columns if name in variants],
        **values,
    )
    return text


def headline(report: BaselineReport) -> str:
    """The result in a sentence or two."""
    return " ".join([*best_prompt_result(report), *variant_result(report, CLASSICAL, "The classical model")])


def best_prompt_result(report: BaselineReport) -> list[str]:
    """The sentence on the best prompt; none where no prompt was evaluated."""
    best = report["best_prompted"]
    return variant_result(report, best, f"The best prompt ({title(best).lower()})") if best else []


def variant_result(report: BaselineReport, variant: str, subject: str) -> list[str]:
    """The sentence on one variant: "… has 9 of 12 (75 %; 95 % interval 42.8 % to 94.5 %) test rows exactly right."
    None where it was not evaluated."""
    figures = report["variants"].get(variant)
    if not figures:
        return []
    (low, high), rows = figures["interval"], figures["rows"]
    share = f"{percent(figures['exact'])}; 95 % interval {percent(low)} to {percent(high)}"
    return [f"{subject} has {round(figures['exact'] * rows)} of {rows} ({share}) test rows exactly right."]


def as_summary(report: BaselineReport) -> Mapping[str, int | float | str | None]:
    """The figures that Dagster, the desk and `finetune status` show."""
    shares = {name: figures["exact"] for name, figures in report["variants"].items()}
    return {"rows": report["rows"], **shares, "best_prompted": report["best_prompted"]}
