"""`train.backend`, and the file that $FINETUNE_BACKEND names: where a training runs, and what belongs to it.

    kind: torchrun               # backend.yaml on a machine with four GPUs; no task changes
    processes_per_node: 4

The deployment's file holds for all tasks; a task may set single keys of it again under `train.backend`. Plan, search,
baselines and evaluation run there too, in one process. Where a training runs is not a part of its artifact's key: the
result is the same.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from finetune_pipeline.config.section import Section


class Ray(Section):
    """An existing Ray cluster, for `kind: ray`; its machines have data and home folder under the same paths."""

    address: str = Field(
        "http://127.0.0.1:8265", description="Address of the cluster's dashboard, which takes jobs; http or https."
    )
    python: str = Field("python", description="Command of Python on the cluster's machines, with this package.")
    runtime_env: dict[str, Any] = Field(
        {}, description="Ray's `runtime_env`, for instance a container image that has this package; no secrets."
    )


class Kubernetes(Section):
    """A Kubernetes cluster, for `kind: kubernetes`."""

    context: str | None = Field(
        None, description="Context of the kubeconfig; default: the current one, or in a pod its own account."
    )
    namespace: str = Field("default", description="Namespace of the Job.")
    image: str = Field("", description="Container image that has this package; pin it by digest.")
    volume_claim: str = Field(
        "", description="Persistent volume claim (ReadWriteMany) that holds data and home folder."
    )
    mount_path: str = Field(
        "", description="Where the volume is mounted: the same path on this machine and in the pods."
    )
    secret: str | None = Field(
        None, description="Secret whose keys become environment variables, for instance the login of MLflow."
    )
    gpu_resource: str = Field("nvidia.com/gpu", description="Resource name of a GPU.")
    resources: dict[str, str] = Field(
        {}, description="Further resources of each pod, such as `cpu` and `memory`; request and limit."
    )
    pod: dict[str, Any] = Field(
        {}, description="Further keys of the pod's spec: `nodeSelector`, `tolerations`, `serviceAccountName`, …"
    )


class Backend(Section):
    """Where a training runs, and on how many devices; plan, search, baselines and evaluation use one of them.
    $FINETUNE_BACKEND names a YAML file with these keys."""

    kind: Literal["local", "torchrun", "ray", "kubernetes"] = Field(
        "local",
        description="local: one process here; torchrun: several processes, here or on several machines; ray: a job of "
        "a Ray cluster; kubernetes: a Job of a cluster.",
    )
    nodes: int = Field(1, ge=1, le=4096, description="Machines (pods) of one training.")
    processes_per_node: int = Field(1, ge=1, le=64, description="Processes on each machine, one per GPU.")
    device: Literal["auto", "gpu", "cpu"] = Field(
        "auto",
        description="auto: GPUs where the machine has any, and one GPU per process on Ray and Kubernetes; gpu: an "
        "error without; cpu: no GPU is used.",
    )
    shard: Literal["auto", "always", "never"] = Field(
        "auto",
        description="Whether each process holds a part of the weights (FSDP), not all of them. auto: with `method: "
        "full`; always: an adapter's base model as well, if one device is too small for it.",
    )
    rendezvous: str | None = Field(
        None,
        description="Host and port of the first machine, where the others find it: needed for torchrun on several.",
    )
    max_restarts: int = Field(
        2,
        ge=0,
        le=100,
        description="How often a training on torchrun, Ray or Kubernetes starts again from its last checkpoint after "
        "one of its processes was killed.",
    )
    ray: Ray = Ray()
    kubernetes: Kubernetes = Kubernetes()
