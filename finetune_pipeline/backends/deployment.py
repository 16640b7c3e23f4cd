"""Which backend a job gets: the deployment's file ($FINETUNE_BACKEND), and what the task sets again.

    backend_for(task.train.backend)      # Backend(kind="torchrun", processes_per_node=4, …)

Without the variable and the section: one process on this machine.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from finetune_pipeline.config import Backend
from finetune_pipeline.config.load import problems_of
from finetune_pipeline.config.task_yaml import MAX_BYTES, parse
from finetune_pipeline.errors import DeclarationError, reading

VARIABLE = "FINETUNE_BACKEND"


def backend_for(declared: Backend | None = None) -> Backend:
    """The settings of the deployment, with the keys that `declared` sets. DeclarationError lists every problem of the
    file, or of the settings together; StorageError when the file cannot be read."""
    name = os.environ.get(VARIABLE)
    deployed = _read(Path(name)) if name else {}
    own = declared.model_dump(exclude_unset=True) if declared else {}
    backend = _valid(_merged(deployed, own), f"${VARIABLE} ({name}) with `train.backend`" if name else "train.backend")
    problems = tuple(_contradictions(backend))
    if problems:
        raise DeclarationError(f"the backend `{backend.kind}` cannot be used as set", "", problems)
    return backend


def one_process(backend: Backend) -> Backend:
    """The same backend with one process, for what does not run on several: a search, the plan of a training."""
    return backend.model_copy(update={"nodes": 1, "processes_per_node": 1, "rendezvous": None})


def _read(path: Path) -> dict[str, Any]:
    with reading(path, f"correct ${VARIABLE}, or unset it to train on this machine"), path.open("rb") as file:
        raw = file.read(MAX_BYTES + 1)
    settings = parse(raw, str(path))
    if not isinstance(settings, dict):
        raise DeclarationError(f"{path} is not a mapping of keys", "begin with `kind: torchrun`")
    _valid(settings, str(path))
    return settings


def _valid(settings: Mapping[str, Any], where: str) -> Backend:
    try:
        return Backend.model_validate(settings)
    except ValidationError as error:
        raise DeclarationError(f"{where} is no backend", problems=problems_of(error, Backend)) from None


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of both; where both have one, `above` counts, key by key in a section."""
    merged = dict(below)
    for key, value in above.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merged(merged[key], value) if both else value
    return merged


def _contradictions(backend: Backend) -> list[str]:
    """Settings that do not fit together, each with what to set."""
    problems: list[str] = []
    if backend.kind == "local" and backend.nodes * backend.processes_per_node > 1:
        problems.append("nodes, processes_per_node: `local` is one process; set `kind: torchrun` for several")
    if backend.kind == "torchrun" and backend.nodes > 1 and not backend.rendezvous:
        problems.append("rendezvous: missing; set host and port of the first machine, such as `10.0.0.4:29400`")
    if backend.rendezvous and not backend.rendezvous.rpartition(":")[2].isdecimal():
        problems.append(f"rendezvous: {backend.rendezvous!r} has no port; write `host:port`")
    if backend.kind == "ray" and not backend.ray.address.startswith(("http://", "https://")):
        problems.append(f"ray.address: {backend.ray.address!r} is no address of a dashboard; write `http://host:8265`")
    if backend.kind == "kubernetes":
        needed = ("image", "volume_claim", "mount_path")
        problems += [f"kubernetes.{key}: missing" for key in needed if not getattr(backend.kubernetes, key)]
    return problems
