"""endpoint.json: what a deployment did, as the monitoring, the desk and `finetune status` read it.

{"task": "support_tickets", "served_as": "support_tickets", "candidate": {"version": 4, …}, "champion": {…},
 "parity": {"gate": "deployed_endpoint", "passed": true, …}, "sample": {"id": "9f2c…", "prompt": "…", …}}
"""

from __future__ import annotations

from typing import Any, TypedDict

from finetune_pipeline.serve.deployment_state import VersionRecord


class Sample(TypedDict):
    """One test row: the answers of the champion and of the base model, and the completion of the data."""

    id: str
    prompt: str
    tuned: str
    base: str
    reference: str


class DeploymentReport(TypedDict):
    """endpoint.json. `champion`: the version that serves, None where none does; `parity`: the verdict, as in the
    manifest; `sample`: None when the candidate was not deployed."""

    task: str
    served_as: str
    candidate: VersionRecord
    champion: VersionRecord | None
    parity: dict[str, Any]
    sample: Sample | None
