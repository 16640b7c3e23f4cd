"""The sensor `mlflow_delivery`: delivers to MLflow what trainings recorded while it was away.

    2 trainings wait for MLflow: parcels, support_tickets      the skip reason where a delivery was started

It starts no run, so it is on by default. The delivery is a process of its own (tracking/background.py).
"""

import dagster as dg

from finetune_pipeline.tracking import background, pending


def mlflow_delivery_sensor() -> dg.SensorDefinition:
    @dg.sensor(
        name="mlflow_delivery",
        minimum_interval_seconds=300,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Delivers to MLflow what trainings recorded while it was away; starts no run.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        waiting = pending()
        if not waiting:
            return dg.SkipReason("no training waits for MLflow")
        background.start()
        tasks = ", ".join(sorted({journal.about.task for journal in waiting}))
        return dg.SkipReason(f"{len(waiting)} trainings wait for MLflow: {tasks}; see logs/sync.log in the home folder")

    return sensor
