"""The body of GET /version: what each task serves, since when, why not what is desired, and figures of progress.

{"identity": "5b1f…", "started": "2026-…", "rounds": 12, "steps": 4711, "busy": 0, "pid": 48213,
 "tasks": {"support_tickets": {
    "served_as": "support_tickets", "champion": {"version": 4, "adapter": "9be0…", "since": "2026-…"},
    "challenger": null, "desired": {"champion": {"version": 5, …}, "challenger": null},
    "errors": {"champion": "version 5 cannot be served: …"}}}}
"""

from __future__ import annotations

from typing import TypedDict

from finetune_pipeline.serve.deployment_state import VersionRecord


class ServedRoute(TypedDict):
    """`adapter`: a content hash; `since`: when this process began to serve it (UTC, ISO 8601)."""

    version: int
    adapter: str | None
    since: str


class DesiredVersions(TypedDict):
    """What deployment_state.json says."""

    champion: VersionRecord | None
    challenger: VersionRecord | None


class TaskVersions(TypedDict):
    """One task. `served_as`: the name of the model, None while nothing is served; `errors` by subject (champion,
    challenger, name, state)."""

    served_as: str | None
    champion: ServedRoute | None
    challenger: ServedRoute | None
    desired: DesiredVersions
    errors: dict[str, str]


class VersionResponse(TypedDict):
    """`rounds`: how often the desired states were read; `steps`: forward passes of all engines; `busy`: requests that
    run or wait; `pid`: of the endpoint's process."""

    identity: str
    started: str
    rounds: int
    steps: int
    busy: int
    pid: int
    tasks: dict[str, TaskVersions]
