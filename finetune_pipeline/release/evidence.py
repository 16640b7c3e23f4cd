"""The evidence for a decision, from the artifacts: scores, losses on general texts, and which rows are not independent.

evidence(context, tests, reuse)       # decide.Evidence; raises when the evaluation is of another adapter or other rows
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from finetune_pipeline.baseline.variants import TUNED
from finetune_pipeline.config import Split
from finetune_pipeline.errors import DataError, GateRefused
from finetune_pipeline.evaluate.champion import served_version
from finetune_pipeline.records import Artifact, Example, Score, read_jsonl
from finetune_pipeline.release.decide import EVALUATE_AGAIN, Evidence
from finetune_pipeline.release.holdout_reuse import HoldoutReuse
from finetune_pipeline.split.quotas import SPLITS
from finetune_pipeline.store import StageContext


def evidence(context: StageContext, tests: Sequence[Example], reuse: HoldoutReuse) -> Evidence:
    """What the evaluation measured of this adapter on these test rows. GateRefused when it is of another adapter,
    DataError when it is on other rows."""
    evaluation, adapter = context.inputs["eval_report"], context.inputs["adapter"]
    _require_adapter(evaluation, adapter)
    scores = [Score(**row) for row in read_jsonl(evaluation.path("scores.jsonl"))]
    _require_rows(tests, scores)
    report = evaluation.json("report.json")
    live = served_version(report.get("champion"))
    return Evidence(
        scores=scores,
        general=_general_losses(evaluation),
        groups=dependent_rows(_split_rows(context), {row.id for row in tests}, context.task.split),
        adapter=adapter.content_hash,
        evaluation=evaluation.content_hash,
        reuse=reuse,
        champion=f"version {live.version}" if live else None,
        unmeasurable=report.get("not_measured", {}).get("general"),
    )


def dependent_rows(rows: Sequence[Example], tests: Collection[str], rules: Split) -> dict[str, str | None]:
    """Id of each test row -> the id of the first test row of its unit; None where it is the only one. `rows`: all rows
    of the split; `tests`: the ids of its test rows.

    The rows of a unit (a declared group, or near duplicates) are right or wrong together, so they are not independent.
    Units are those of the split, so similarity is measured over all of its rows: text that many of them share does not
    make two similar, and the test rows alone are too few to show that many share it.
    """
    from finetune_pipeline.split.assignment import units
    from finetune_pipeline.split.leakage import row_similarity

    near = row_similarity(rows, rules.near_duplicate_threshold).texts.clusters()
    groups: dict[str, str | None] = {}
    for unit in units(rows, near):
        ids = [rows[i].id for i in unit if rows[i].id in tests]
        groups |= dict.fromkeys(ids, ids[0] if len(ids) > 1 else None)
    return groups


def _split_rows(context: StageContext) -> list[Example]:
    split = context.inputs["data_split"]
    return [row for name in SPLITS for row in split.examples(f"{name}.jsonl")]


def _require_adapter(evaluation: Artifact, adapter: Artifact) -> None:
    evaluated = evaluation.manifest["inputs"].get("adapter")
    if evaluated != adapter.content_hash:
        raise GateRefused(
            f"the evaluation is of adapter {evaluated}, and the current one is {adapter.content_hash}", EVALUATE_AGAIN
        )


def _require_rows(tests: Sequence[Example], scores: Sequence[Score]) -> None:
    differing = {row.id for row in tests} ^ {score.id for score in scores if score.variant == TUNED}
    if differing:
        raise DataError(
            f"the evaluation scored other rows than the split's test rows: {len(differing)} differ, "
            f"such as {min(differing)}",
            EVALUATE_AGAIN,
        )


def _general_losses(evaluation: Artifact) -> list[tuple[float, float]] | None:
    """Pairs of the losses on each general text, base and tuned; None where they were not measured."""
    path = evaluation.path("general.jsonl")
    return [(row["base"], row["tuned"]) for row in read_jsonl(path)] if path.exists() else None
