"""The Dagster definitions of all tasks. Loaded by `dagster dev -w workspace.yaml`, `dg dev`, `make up`.

Every folder data/<task>/ with a task.yaml becomes an asset group of that name. A task whose declaration is wrong
becomes an external asset of the group `_broken_tasks` that reports the error. The assets, in the order of the data:

    base_model      the base model, pinned and license checked
    raw_examples    rows as read
    clean_examples  fixed rows and the ledger             gate: every row accounted for
    suitability_report                                     gate: worth tuning at all
    data_quality    Great Expectations                     gate: 95 % of the rows pass every rule
    review_sample   10 % for the experts
    expert_review   their verdicts                         gate: 95 % approved, with the exact bound
    data_split      train, validation, test                gate: no overlap
    training_plan   memory, time and cost of the training  gate: fits (a warning)
    baseline_report what prompting and a classical model reach
    training_search settings compared on the validation rows, if the task declares a search
    adapter         LoRA                                   gate: learns and converges
    eval_report     prompts, classical model, live version, tuned model
    release_decision                                       gate: PROMOTE, REJECT or INCONCLUSIVE
    registered_model    a version in MLflow's registry
    deployed_endpoint                                      gate: parity of served and evaluated answers
    traffic_report  drift, latency, format                 gate: no alarm (a warning)

Beside them are the sources that they read (`sources`, `reviews`, `traffic_log`, ...), as observable source assets.
The assets' functions are in the library (`ingest/` to `monitor/`); `graph.py` declares what each is made from.
"""

import dagster as dg

from finetune_pipeline.defs.code_location import code_location_sensor
from finetune_pipeline.defs.mlflow_delivery import mlflow_delivery_sensor
from finetune_pipeline.defs.run_monitoring import run_monitoring_sensor
from finetune_pipeline.defs.task_definitions import task_definitions
from finetune_pipeline.store import task_names


def build(names: list[str]) -> dg.Definitions:
    """Definitions of these tasks. A run is one process; training and evaluation start processes of their own."""
    shared = dg.Definitions(
        sensors=[code_location_sensor(names), run_monitoring_sensor(), mlflow_delivery_sensor()],
        executor=dg.in_process_executor,
    )
    return dg.Definitions.merge(*(task_definitions(name) for name in names), shared)


defs = build(task_names())
