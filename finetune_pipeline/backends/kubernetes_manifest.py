"""The Kubernetes objects of a job: a `batch/v1` Job with a pod per machine, and the Service by which the pods find the
first one.

    manifests("finetune-4711", launch, settings, "/data/job/launch.json", environment)    # [Service, Job]

Each pod runs `backends/node.py`. Kubernetes gives the GPUs, and starts a pod again whose machine was lost; processes of
a pod that were killed are started again by torch's elastic agent in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finetune_pipeline.backends.node import Launch
from finetune_pipeline.config.backend import Kubernetes

PORT = 29400
INSTANCE = "app.kubernetes.io/instance"  # the label with the name of the Job
GRACE_SECONDS = 120  # between SIGTERM and SIGKILL for a pod, for instance when its machine is drained
Manifest = dict[str, Any]


def manifests(
    name: str,
    launch: Launch,
    settings: Kubernetes,
    path: str,
    environment: Mapping[str, str],
    required: Sequence[str] = (),
) -> list[Manifest]:
    """The Service (with several machines) and the Job. `path`: of launch.json, on the shared volume; `required`: keys
    of the Secret without which Kubernetes starts no pod, and says so."""
    labels = {"app.kubernetes.io/name": "finetune-pipeline", INSTANCE: name}
    metadata = {"name": name, "namespace": settings.namespace, "labels": labels}
    variables: list[Manifest] = [
        *({"name": key, "value": value} for key, value in environment.items()),
        *({"name": key, "valueFrom": {"secretKeyRef": {"name": settings.secret, "key": key}}} for key in required),
    ]
    spec = {
        "completionMode": "Indexed",
        "completions": launch.nodes,
        "parallelism": launch.nodes,
        "backoffLimit": launch.max_restarts * launch.nodes,  # counts pods: all of them end when the first is lost
        "template": {"metadata": {"labels": labels}, "spec": _pod(name, launch, settings, path, variables)},
    }
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}
    return [job] if launch.nodes == 1 else [_service(metadata, labels), job]


def rendezvous(name: str, launch: Launch) -> str | None:
    """Host and port of the first pod: the name that the Service gives it."""
    return f"{name}-0.{name}:{PORT}" if launch.nodes > 1 else None


def _service(metadata: Mapping[str, Any], labels: Mapping[str, str]) -> Manifest:
    """A Service without an address of its own: it gives each pod a name, also before the pod is ready."""
    spec = {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": dict(labels)}
    port = {"name": "rendezvous", "port": PORT}
    return {"apiVersion": "v1", "kind": "Service", "metadata": dict(metadata), "spec": {**spec, "ports": [port]}}


def _pod(name: str, launch: Launch, settings: Kubernetes, path: str, variables: list[Manifest]) -> Manifest:
    gpus = {settings.gpu_resource: str(launch.processes_per_node)} if launch.device != "cpu" else {}
    resources = {**settings.resources, **gpus}
    volumes = [
        {"name": "shared", "persistentVolumeClaim": {"claimName": settings.volume_claim}},
        {"name": "memory", "emptyDir": {"medium": "Memory"}},  # NCCL and gloo exchange through /dev/shm
    ]
    container = {
        "name": "training",
        "image": settings.image,
        "command": ["python", "-m", "finetune_pipeline.backends.node", path],
        "env": variables,
        "envFrom": [{"secretRef": {"name": settings.secret}}] if settings.secret else [],
        "resources": {"requests": resources, "limits": resources},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
        "volumeMounts": [
            {"name": "shared", "mountPath": settings.mount_path},
            {"name": "memory", "mountPath": "/dev/shm"},  # noqa: S108
        ],
    }
    return {
        "restartPolicy": "Never",  # the Job makes a new pod, and counts it
        "subdomain": name,
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "containers": [container],
        "volumes": volumes,
        **settings.pod,
    }
