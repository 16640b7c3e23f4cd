"""Asset checks: one for a gate, which may block, and one for each of its checks, whose number Dagster plots over runs.

    data_quality    quality_gate                 blocking: the verdict, with all checks as a table
                    row_ok, prompt_fits, ...     not blocking: what was expected and observed, `value` as a number

A check that depends on the data (a drift of one log, a live version's number) is in the table only.
"""

import re
from typing import Any

import dagster as dg

from finetune_pipeline.config import Task
from finetune_pipeline.defs.metadata import plain
from finetune_pipeline.graph import Step
from finetune_pipeline.materialize import function
from finetune_pipeline.records import Artifact, Check, Verdict, content_id


def check_specs(step: Step, task: Task, key: dg.AssetKey) -> list[dg.AssetCheckSpec]:
    """The gate and its checks; nothing for a step without a gate."""
    if step.check is None:
        return []
    gate = dg.AssetCheckSpec(step.check, asset=key, blocking=step.blocking, description="The gate: all of its checks.")
    names = dagster_names(step, task).items()
    return [gate, *(dg.AssetCheckSpec(name, asset=key, description=text) for name, text in names)]


def dagster_names(step: Step, task: Task) -> dict[str, str]:
    """The checks that a gate has in every run: Dagster's name of each, and its own (`records.Check.name`)."""
    texts = function(step.check_names)(task) if isinstance(step.check_names, str) else step.check_names
    names: dict[str, str] = {}
    for text in texts:
        name = dagster_name(text)
        names[name if name not in {*names, step.check} else f"{name}_{content_id(text)[:4]}"] = text
    return names


def dagster_name(text: str) -> str:
    """A check's name as Dagster takes it: "fits into this machine's memory" is fits_into_this_machine_s_memory."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_") or f"check_{content_id(text)[:4]}"


def check_results(step: Step, task: Task, artifact: Artifact) -> list[dg.AssetCheckResult]:
    """A result for each spec, from the verdict that is stored with the artifact."""
    if step.check is None:
        return []
    verdict = artifact.verdict
    found = {check.name: check for check in verdict.checks} if verdict else {}
    results = (_result(step, name, found.get(text)) for name, text in dagster_names(step, task).items())
    return [_gate(step, step.check, verdict), *results]


def _gate(step: Step, name: str, verdict: Verdict | None) -> dg.AssetCheckResult:
    if verdict is None:
        return dg.AssetCheckResult(check_name=name, passed=False, description="the asset has no verdict stored")
    metadata = {"checked": verdict.about, "checks": _table(verdict.checks), **plain(verdict.figures)}
    return dg.AssetCheckResult(
        check_name=name,
        passed=verdict.passed,
        severity=_severity(step.blocking),
        description=verdict.summary,
        metadata=metadata,
    )


def _result(step: Step, name: str, check: Check | None) -> dg.AssetCheckResult:
    """A check that the verdict does not have does not apply to this artifact, or found nothing to warn of."""
    if check is None:
        return dg.AssetCheckResult(
            check_name=name, passed=True, description="nothing to report", metadata={"reported": False}
        )
    metadata: dict[str, Any] = {"reported": True, "expected": check.expected, "observed": check.observed}
    if check.value is not None:
        metadata["value"] = float(check.value)
    return dg.AssetCheckResult(
        check_name=name,
        passed=check.passed,
        severity=_severity(step.blocking and check.severity == "error"),
        description=f"{check.observed} (expected: {check.expected})",
        metadata=metadata,
    )


def _severity(error: bool) -> dg.AssetCheckSeverity:
    return dg.AssetCheckSeverity.ERROR if error else dg.AssetCheckSeverity.WARN


def _table(checks: tuple[Check, ...]) -> Any:
    records = [
        dg.TableRecord(
            {"check": c.name, "passed": "yes" if c.passed else "NO", "expected": c.expected, "observed": c.observed}
        )
        for c in checks
    ]
    return dg.MetadataValue.table(records) if records else "none"
