"""The sensor `code_location_reload`: reloads the code location when a task was added, removed or declared differently.

    the task `parcels` is new: press Reload ...     the skip reason where the reload could not be requested

It starts no run, so it is on by default. It requests the reload from the Dagster UI ($FINETUNE_DAGSTER_URL), once for
each state of the tasks. A run needs no reload: it reads the declaration itself. The UI does: code versions (what is
stale), checks, owners and the schedule are those of the declaration at loading.
"""

from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

import dagster as dg

from finetune_pipeline.config.addresses import address
from finetune_pipeline.errors import FinetuneError
from finetune_pipeline.materialize import open_task
from finetune_pipeline.records import content_id
from finetune_pipeline.store import task_names

LOCATION = "finetune_pipeline"  # as in workspace.yaml
RELOAD_SECONDS = 60


def code_location_sensor(names: Iterable[str]) -> dg.SensorDefinition:
    """The sensor for a code location that was loaded with the tasks `names`."""
    loaded = task_states(names)

    @dg.sensor(
        name="code_location_reload",
        minimum_interval_seconds=30,
        default_status=dg.DefaultSensorStatus.RUNNING,
        description="Reloads the definitions when a task was added, removed or declared differently; starts no run.",
    )
    def sensor(context: dg.SensorEvaluationContext) -> dg.SkipReason:
        now = task_states(task_names())
        changes = describe(loaded, now)
        if not changes:
            return dg.SkipReason("every task is loaded as declared")
        seen = content_id(*(part for state in sorted(now.items()) for part in state))
        message = f"{'; '.join(changes)}: press Reload beside {LOCATION} under Deployment, Code locations"
        if context.cursor != seen:
            context.update_cursor(seen)
            context.log.warning(message)
            message = request_reload() or message
        return dg.SkipReason(message)

    return sensor


def task_states(names: Iterable[str]) -> dict[str, str]:
    """Of each task its declaration, as a hash, or what is wrong with it."""
    return {name: _state(name) for name in names}


def _state(name: str) -> str:
    try:
        return content_id(open_task(name)[0].model_dump_json(by_alias=True))
    except FinetuneError as error:
        return f"broken: {error}"


def describe(loaded: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """What differs, a phrase for each task."""
    new = [f"the task `{name}` is new" for name in sorted(now.keys() - loaded.keys())]
    gone = [f"the task `{name}` is gone" for name in sorted(loaded.keys() - now.keys())]
    both = sorted(now.keys() & loaded.keys())
    return [*new, *gone, *(f"the task `{name}` changed" for name in both if now[name] != loaded[name])]


def request_reload() -> str:
    """Ask the Dagster UI to load the definitions again. Returns "" where the request failed (it does not run, or
    requires a password): then a person presses the button."""
    from dagster_graphql import DagsterGraphQLClient, DagsterGraphQLClientError, ReloadRepositoryLocationStatus
    from requests import RequestException

    url = urlsplit(address("FINETUNE_DAGSTER_URL"))
    try:
        client = DagsterGraphQLClient(
            url.hostname or "",
            port_number=url.port,
            use_https=url.scheme == "https",
            timeout=RELOAD_SECONDS,
            path_prefix=url.path,
        )
        answer = client.reload_repository_location(LOCATION)
    except (DagsterGraphQLClientError, RequestException):
        return ""
    done = answer.status == ReloadRepositoryLocationStatus.SUCCESS
    return "the tasks changed; the definitions were reloaded" if done else ""
