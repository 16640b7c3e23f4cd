"""Dagster's table of contents, in the data's order. Loaded by `dagster dev -w workspace.yaml`, `dg dev`, `make up`.

Every folder data/<task>/ with a task.yaml becomes an asset group of that name; one whose declaration is wrong becomes
an asset of the group `_broken_tasks` that says what is wrong:

    base_model      the base model, pinned and license checked
    raw_examples    rows as read
    clean_examples  fixed rows and the ledger             gate: every row accounted for
    suitability_report                                     gate: worth tuning at all
    data_quality    Great Expectations                     gate: 95 % of the rows right in every respect
    review_sample   10 % for the experts
    expert_review   their verdicts                         gate: 95 % approved, with the exact bound
    data_split      train, validation, test                gate: no overlap
    baseline_report what prompting reaches
    adapter         LoRA                                   gate: learns and converges
    eval_report     base, prompted, tuned
    release_decision                                       gate: PROMOTE, REJECT or INCONCLUSIVE
    registered_model
    deployed_endpoint                                      gate: parity of served and evaluated answers
    traffic_report                                         alarms start a retraining

What they do is in the library (`ingest/` to `monitor/`); `graph.py` says what each is made from.
"""

import dagster as dg

from finetune_pipeline.defs.orphans import watch_orphans
from finetune_pipeline.defs.task_folders import watch_task_folders
from finetune_pipeline.defs.tasks import task_definitions
from finetune_pipeline.store import task_names


def build(names: list[str]) -> dg.Definitions:
    """Definitions of these tasks. One run is one process: what is heavy runs in a job process of its own anyway."""
    shared = dg.Definitions(sensors=[watch_task_folders(names), watch_orphans()], executor=dg.in_process_executor)
    return dg.Definitions.merge(*(task_definitions(name) for name in names), shared)


defs = build(task_names())
