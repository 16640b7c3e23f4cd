"""MLflow: one experiment per task, one run per training, model versions with aliases. No other package imports mlflow.

    with tracking.training_run("support_tickets", None, {"lora.r": 16}, {"data": "9f1c…"}) as run:
        run.log_metrics({"loss": 0.31}, step=12)
        run.log_artifacts(folder, "adapter")
    version = tracking.register("support_tickets", run.run_id, "adapter", {"adapter": "4be0…"}, "description")
    tracking.set_alias("support_tickets", "champion", version)

The server is $MLFLOW_TRACKING_URI, by default SQLite in the home folder; MLflow's telemetry is off. `import mlflow`
takes seconds, so it happens in the functions that need it.
"""

from finetune_pipeline.tracking.registry import find_version, register, set_alias
from finetune_pipeline.tracking.runs import Run, end_killed, training_run

__all__ = ["Run", "end_killed", "find_version", "register", "set_alias", "training_run"]
