"""The report of the quality gate: what Great Expectations found, with example rows, in one file that needs no server.

    report.html                   rendered from the result's JSON (report.html.j2)
    validation_result.json        Great Expectations' own results, without times and texts

The page fetches and runs nothing; a Content-Security-Policy in it forbids the browser to. Example rows show personal
data and secrets masked, whatever the declaration says. Neither file has a time (the manifest has): the same data gives
the same files.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finetune_pipeline.clean import pii
from finetune_pipeline.quality import secrets
from finetune_pipeline.quality.rules import ROW_OK
from finetune_pipeline.quality.suite import Checked
from finetune_pipeline.records import Json, Verdict
from finetune_pipeline.statistics.formatting import percent_down

if TYPE_CHECKING:
    from pandas import DataFrame

EXAMPLES = 5  # rows shown for each expectation
HEAD, TAIL = 260, 90  # characters of a text that are shown, from its beginning and its end
_KEPT_LIST = 100  # numbers of an observed list that are stored
# Times, ids and addresses of the run: they differ between two runs over the same data.
_VOLATILE = {"id", "batch_id", "rendered_content", "exception_info", "unexpected_index_list"}


@dataclass(frozen=True, slots=True)
class ExampleRow:
    """One row that does not meet an expectation; texts are masked and cut."""

    id: str
    origin: str
    prompt: str
    completion: str
    breaks: str  # the rules that it does not meet: "no html, prompt fits"


@dataclass(frozen=True, slots=True)
class Line:
    """One expectation on the page. `tone` is good, warning or bad; `rows` are those that do not meet it."""

    name: str
    tone: str
    description: str
    observed: str
    type: str
    kwargs: str
    rows: int
    examples: Sequence[ExampleRow]


def write(checked: Checked, frame: DataFrame, verdict: Verdict, out: Path, title: str) -> None:
    """Write both files into `out`."""
    result = plain(checked)
    (out / "validation_result.json").write_text(json.dumps(result, indent=1, ensure_ascii=False), "utf-8")
    (out / "report.html").write_text(page(result, verdict, examples(checked, frame), title), "utf-8")


def plain(checked: Checked) -> dict[str, Any]:
    """Great Expectations' results as JSON: {"success", "great_expectations_version", "suites": [rows, table]}. Numbers
    stay; of observed texts and lists of texts only that they were there."""
    suites = [suite.to_json_dict() for suite in checked.suites]
    return {
        "success": all(suite["success"] for suite in suites),
        "great_expectations_version": suites[0]["meta"]["great_expectations_version"],
        "suites": [
            {
                "suite_name": suite["suite_name"],
                "success": suite["success"],
                "statistics": suite["statistics"],
                "results": [_plain_result(each) for each in suite["results"]],
            }
            for suite in suites
        ],
    }


def _plain_result(each: Mapping[str, Any]) -> dict[str, Any]:
    config = {key: value for key, value in each["expectation_config"].items() if key not in _VOLATILE}
    config["kwargs"] = {key: value for key, value in config["kwargs"].items() if key not in _VOLATILE}
    found = {key: without_texts(value) for key, value in each["result"].items() if key not in _VOLATILE}
    return {"success": each["success"], "expectation_config": config, "result": found}


def without_texts(value: Any) -> Any:
    """Numbers as they are; a text, and a list with texts in it, as what they are."""
    if isinstance(value, dict):
        return {key: without_texts(item) for key, item in value.items() if key != "value_counts"}
    if isinstance(value, list):
        numbers = all(isinstance(item, int | float | None) for item in value)
        return value if numbers and len(value) <= _KEPT_LIST else f"({len(value):,} values)"
    return "(a text)" if isinstance(value, str) else value


def examples(checked: Checked, frame: DataFrame) -> dict[str, list[ExampleRow]]:
    """The first rows that do not meet each expectation, by its name."""
    masks = {name: checked.broken[name] for name in checked.broken} | {ROW_OK: ~checked.row_ok}
    found = {str(name): frame[mask].head(EXAMPLES) for name, mask in masks.items() if mask.any()}
    return {
        name: [
            ExampleRow(id_, origin, excerpt(prompt), excerpt(completion), _breaks(checked, at))
            for at, id_, origin, prompt, completion in rows[["id", "origin", "prompt", "completion"]].itertuples()
        ]
        for name, rows in found.items()
    }


def _breaks(checked: Checked, at: Any) -> str:
    broken = checked.broken.loc[at]
    return ", ".join(str(name).replace("_", " ") for name in checked.rules if broken[name])


def excerpt(text: Any) -> str:
    """Beginning and end of a text, without personal data and secrets; "" for a missing one."""
    if not isinstance(text, str):
        return ""
    masked = pii.mask(secrets.mask(text))[0]
    return masked if len(masked) <= HEAD + TAIL else f"{masked[:HEAD].rstrip()} … {masked[-TAIL:].lstrip()}"


def page(result: Mapping[str, Any], verdict: Verdict, shown: Mapping[str, Sequence[ExampleRow]], title: str) -> str:
    """The whole page. `result` is what `plain` gives."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("finetune_pipeline.quality", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["percent"] = percent_down
    lines = _lines(result, verdict, shown)
    text: str = environment.get_template("report.html.j2").render(
        title=title,
        verdict=verdict,
        figures=verdict.figures,
        version=result["great_expectations_version"],
        groups=[
            (name, [line for line in lines if line.tone == tone])
            for tone, name in (("bad", "Not met"), ("warning", "Warnings"), ("good", "Met"))
        ],
    )
    return text


def _lines(result: Mapping[str, Any], verdict: Verdict, shown: Mapping[str, Sequence[ExampleRow]]) -> list[Line]:
    """The expectations in the verdict's order."""
    configs = [each["expectation_config"] for suite in result["suites"] for each in suite["results"]]
    by_name = {config["meta"]["name"]: config for config in configs}
    figures: Mapping[str, Any] = verdict.figures
    broken = {ROW_OK: figures["wrong"], **figures["broken"]}
    lines = []
    for check in verdict.checks:
        config = by_name[check.name]
        tone = "good" if check.passed else "warning" if check.severity == "warning" else "bad"
        rows = broken.get(check.name, 0)
        kwargs = ", ".join(f"{key}: {_shown(value)}" for key, value in config["kwargs"].items())
        description, seen = check.expected[:1].upper() + check.expected[1:], shown.get(check.name, [])
        lines.append(Line(check.name, tone, description, check.observed, config["type"], kwargs, rows, seen))
    return lines


def _shown(value: Json) -> str:
    written = json.dumps(value, ensure_ascii=False)
    return written if len(written) <= HEAD else f"{written[:HEAD]}…"
