"""MLflow: one experiment per task, one run per training, model versions with aliases. No other package imports mlflow.

    with tracking.training_run("support_tickets", None, {"lora.r": 16}, {"data": "9f1c…"}) as run:
        run.log_metrics({"loss": 0.31}, step=12)
        run.log_artifacts(folder, "adapter")
    run_id = tracking.delivered_run("support_tickets", run.run_id)
    version = tracking.register("support_tickets", run_id, "adapter", {"adapter": "4be0…"}, "description")
    tracking.set_alias("support_tickets", "champion", version)

A training does not need MLflow: what MLflow does not accept waits on this machine, and `tracking.sync` delivers it.
The server is $MLFLOW_TRACKING_URI, by default SQLite in the home folder; MLflow's telemetry is off. `import mlflow`
takes seconds, so it happens in the functions that need it.
"""

from finetune_pipeline.tracking.delivery import delivered_run, pending, sync
from finetune_pipeline.tracking.registry import find_version, register, set_alias
from finetune_pipeline.tracking.runs import Run, training_run

__all__ = ["Run", "delivered_run", "find_version", "pending", "register", "set_alias", "sync", "training_run"]
