"""The commands that move a task's traffic without a deployment: roll back, and remove the hold a rollback left.

rollback("support_tickets", "wrong prices")
"support_tickets: version 3 serves again, and running endpoints follow within seconds; …"
unhold("support_tickets")
"support_tickets: version 4 may be deployed again; `finetune run support_tickets` deploys it after the parity check"
"""

from __future__ import annotations

from datetime import UTC, datetime

from finetune_pipeline.errors import GateRefused, StorageError
from finetune_pipeline.release.registration import ModelRecord
from finetune_pipeline.serve import deployment_state, transitions
from finetune_pipeline.store import TaskStore


def rollback(task: str, reason: str = "") -> str:
    """Make the previous version of `task` the champion, for every endpoint; MLflow's alias `champion` follows. Returns
    a message for the user. `reason` is kept in the history. GateRefused when there is no previous version. The traffic
    moves first: it does not wait for a registry that is down."""
    store = TaskStore(task)
    champion = deployment_state.update(store, lambda state: transitions.roll_back(state, _now(), reason)).champion
    if champion is None:
        raise GateRefused(f"{task} serves nothing", "deploy a version with `finetune run`")
    message = (
        f"{task}: version {champion.version} serves again, and running endpoints follow within seconds; the version "
        f"before is held until you run `finetune unhold {task}`"
    )
    warning = sync_alias(store)
    return message + (f"; {warning}" if warning else "")


def unhold(task: str, reason: str = "") -> str:
    """Allow the registered model of `task` to be deployed again after its rollback; the next run deploys it. Returns a
    message for the user. GateRefused when it is not held."""
    store = TaskStore(task)
    registered, adapter = store.current("registered_model"), store.current("adapter")
    held = deployment_state.read(store).held
    if registered is None or adapter is None or adapter.content_hash not in held:
        raise GateRefused(
            f"{task}: the current model is not held: it was not rolled back", "run `finetune run` to deploy it"
        )
    record: ModelRecord = registered.json("model.json")
    version = record["version"]
    deployment_state.update(
        store,
        lambda state: transitions.remove_hold(
            state, adapter.content_hash, version, registered.content_hash, _now(), reason
        ),
    )
    return f"{task}: version {version} may be deployed again; `finetune run {task}` deploys it after the parity check"


def sync_alias(store: TaskStore) -> str:
    """Set MLflow's alias `champion` to the champion of the deployment state. Returns a warning for the user when that
    failed, else "": the alias is only shown to people, nothing that serves reads it."""
    from finetune_pipeline import tracking

    set_to = None
    while (champion := deployment_state.read(store).champion) is not None and champion.version != set_to:
        registered = store.by_content("registered_model", champion.registered)
        record: ModelRecord | None = registered.json("model.json") if registered else None
        try:
            tracking.set_alias(record["name"] if record else store.task, "champion", champion.version)
        except StorageError as error:
            return f"MLflow's alias `champion` was not updated: {error.message}"
        set_to = champion.version  # read again: the champion may have changed during the call to MLflow
    return ""


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
