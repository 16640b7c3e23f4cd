"""`kind: kubernetes`: the same processes as a `batch/v1` Job with a pod per machine (extra `kubernetes`).

The official client creates the objects of kubernetes_manifest.py, asks for the Job's conditions, and deletes it in the
end. Events, result and cancellation are files of the job's folder, on the volume that pods and this machine share.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from finetune_pipeline.backends.job_files import JobFiles, untouched
from finetune_pipeline.backends.kubernetes_manifest import manifests, rendezvous
from finetune_pipeline.backends.node import Launch
from finetune_pipeline.backends.remote import ADDRESS, forwarded, wait_for_end
from finetune_pipeline.config import Backend
from finetune_pipeline.errors import TrainingFailed
from finetune_pipeline.records import Reporter, content_id

POLL_SECONDS = 2.0
AWAY_SECONDS = 600.0  # of a cluster that does not answer, before the job counts as lost
ENDING_SECONDS = 30.0  # of pods that give no sign after a cancellation
GONE = 404
HINT = "check the kubeconfig and `kubernetes` of the backend; then run again: finished work is kept"


def start(files: JobFiles, launch: Launch, backend: Backend, report: Reporter) -> KubernetesJob:
    """Create the Job, after deleting the one that an earlier run of the same folder left. TrainingFailed when the
    folder is not on the volume, or the cluster does not take the Job."""
    settings, folder = backend.kubernetes, files.folder.parent
    if not folder.is_relative_to(Path(settings.mount_path)):
        raise TrainingFailed(
            f"the job's folder {folder} is not below `kubernetes.mount_path`, {settings.mount_path}",
            "set $FINETUNE_DATA and $FINETUNE_HOME to folders of the volume, mounted at the same path here",
        )
    environment = forwarded(Path(settings.mount_path), own_address=settings.secret is not None)
    required = [ADDRESS] if os.environ.get(ADDRESS) and ADDRESS not in environment else []
    name = f"finetune-{content_id(str(folder))[:16]}"
    launch = replace(launch, rendezvous=rendezvous(name, launch))
    files.write_launch(launch.to_json())
    batch, core = _clients(settings.context)
    job = KubernetesJob(files, report, name, settings.namespace, batch, core)
    try:
        job.delete()
        for manifest in manifests(name, launch, settings, str(files.launch), environment, required):
            create = core.create_namespaced_service if manifest["kind"] == "Service" else batch.create_namespaced_job
            create(settings.namespace, manifest)
    except _client_errors() as error:
        raise TrainingFailed(f"Kubernetes does not take the Job {name}: {_reason(error)}", HINT) from error
    report.log(f"created the Job {name} with {launch.nodes} pods in the namespace {settings.namespace}")
    return job


def _clients(context: str | None) -> tuple[Any, Any]:
    """The client's BatchV1Api and CoreV1Api."""
    try:
        from kubernetes import client, config
    except ImportError as error:
        hint = "install finetune-pipeline[kubernetes]"
        raise TrainingFailed("the backend `kubernetes` needs the extra `kubernetes`", hint) from error
    file = os.environ.get("KUBECONFIG")
    try:
        if "KUBERNETES_SERVICE_HOST" in os.environ and not file and context is None:  # in a pod: its service account
            config.load_incluster_config()
        else:
            config.load_kube_config(config_file=file, context=context)
    except config.ConfigException as error:
        raise TrainingFailed(f"no Kubernetes cluster is configured: {error}", HINT) from error
    return client.BatchV1Api(), client.CoreV1Api()


def _client_errors() -> tuple[type[Exception], ...]:
    from kubernetes.client import ApiException
    from urllib3.exceptions import HTTPError

    return ApiException, HTTPError


def _reason(error: Exception) -> str:
    """A short text without headers and bodies, which may hold more than a person should see."""
    return f"{getattr(error, 'status', '')} {getattr(error, 'reason', None) or type(error).__name__}".strip()


@dataclass
class KubernetesJob:
    """A Job of a cluster (follow.Started)."""

    files: JobFiles
    report: Reporter
    name: str
    namespace: str
    batch: Any
    core: Any
    _code: int | None = None
    _asked: float = 0.0
    _answered: float = field(default_factory=time.monotonic)
    _said: str = ""

    def ended(self) -> int | None:
        """Asks at most every POLL_SECONDS, and logs what keeps the pods from starting."""
        if self._code is not None or time.monotonic() - self._asked < POLL_SECONDS:
            return self._code
        self._asked = time.monotonic()
        try:
            job = self.batch.read_namespaced_job_status(self.name, self.namespace)
            self._log_waiting()
        except _client_errors() as error:
            if getattr(error, "status", None) == GONE:
                self._code = 1  # a person deleted it
            elif time.monotonic() - self._answered > AWAY_SECONDS:
                raise TrainingFailed(f"the Kubernetes cluster is away: {_reason(error)}", HINT) from error
            return self._code
        self._answered = time.monotonic()
        for condition in job.status.conditions or []:
            if condition.status == "True" and condition.type in ("Complete", "Failed"):
                self._code = 0 if condition.type == "Complete" else 1
                self._keep(f"Job {self.name}: {condition.type}: {condition.reason or ''} {condition.message or ''}")
        return self._code

    def end(self) -> None:
        """Cancel the job; its pods end it at a checkpoint, and kill what is inactive. Then delete the Job."""
        try:
            if self._code is None:
                self.files.cancel.touch()
                wait_for_end(lambda: self.ended() is not None, untouched(self.files.ending, ENDING_SECONDS))
        finally:
            self.delete()

    def delete(self) -> None:
        """Delete the Job with its pods, and the Service; returns when the Job is gone. No error where none is."""
        for delete in (self.batch.delete_namespaced_job, self.core.delete_namespaced_service):
            try:
                delete(self.name, self.namespace, propagation_policy="Foreground")
            except _client_errors() as error:
                if getattr(error, "status", None) != GONE:
                    raise
        while self._exists():
            time.sleep(POLL_SECONDS)

    def _exists(self) -> bool:
        try:
            self.batch.read_namespaced_job_status(self.name, self.namespace)
        except _client_errors() as error:
            if getattr(error, "status", None) == GONE:
                return False
            raise
        return True

    def _log_waiting(self) -> None:
        """What the pods wait for, when it changes: a GPU, the image."""
        pods = self.core.list_namespaced_pod(self.namespace, label_selector=f"app.kubernetes.io/instance={self.name}")
        texts = dict.fromkeys(text for pod in pods.items for text in _waiting(pod))
        said = "; ".join(texts)
        if said and said != self._said:
            self.report.log(f"the pods wait: {said}")
        self._said = said

    def _keep(self, text: str) -> None:
        output = os.open(self.files.folder / "output-kubernetes.log", os.O_WRONLY | os.O_CREAT, 0o600)
        with os.fdopen(output, "w", encoding="utf-8") as file:
            file.write(text)


def _waiting(pod: Any) -> list[str]:
    """Why a pod has not started."""
    conditions = [each for each in pod.status.conditions or [] if each.type == "PodScheduled"]
    texts = [each.message or each.reason for each in conditions if each.status == "False"]
    waiting = [each.state.waiting for each in pod.status.container_statuses or [] if each.state and each.state.waiting]
    return [*texts, *(each.message or each.reason for each in waiting)]
