"""`kind: kubernetes`: the same processes as a `batch/v1` Job with a pod per machine (extra `kubernetes`).

The official client creates the objects of kubernetes_manifest.py, asks for the Job's conditions, and deletes it in the
end. Events, result and cancellation are files of the job's folder, on the volume that pods and this machine share.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from finetune_pipeline.backends.job_files import JobFiles, untouched
from finetune_pipeline.backends.kubernetes_manifest import INSTANCE, manifests, rendezvous
from finetune_pipeline.backends.node import Launch
from finetune_pipeline.backends.remote import ADDRESS, forwarded, wait_for_end
from finetune_pipeline.config import Backend
from finetune_pipeline.errors import TrainingFailed
from finetune_pipeline.records import Reporter, content_id

POLL_SECONDS = 2.0
AWAY_SECONDS = 600.0  # of a cluster that does not answer, before the job counts as lost
ENDING_SECONDS = 30.0  # of pods that give no sign after a cancellation
GONE = 404
REFUSED = (401, 403)
# Exit codes by condition. Kubernetes adds Complete and Failed once all pods have ended, which those of a lost machine
# never do.
CODES = {"SuccessCriteriaMet": 0, "Complete": 0, "FailureTarget": 1, "Failed": 1}
HINT = "check the kubeconfig and `kubernetes` of the backend; then run again: finished work is kept"


def start(files: JobFiles, launch: Launch, backend: Backend, report: Reporter) -> KubernetesJob:
    """Create the Job, after deleting the one that an earlier run of the same folder left. TrainingFailed when folder or
    home are not on the volume, or the cluster does not take the Job."""
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
    job.delete_earlier()
    for manifest in manifests(name, launch, settings, str(files.launch), environment, required):
        service = manifest["kind"] == "Service"
        with _asking("create", "services" if service else "jobs", settings.namespace):
            create = core.create_namespaced_service if service else batch.create_namespaced_job
            create(settings.namespace, manifest)
    report.log(f"created the Job {name} with {launch.nodes} pods in the namespace {settings.namespace}")
    return job


def _clients(context: str | None) -> tuple[Any, Any]:
    """The client's BatchV1Api and CoreV1Api."""
    try:
        from kubernetes import client, config
    except ImportError as error:
        hint = "in the clone: .venv/bin/uv pip install -p .venv -c requirements.lock -e '.[kubernetes]'"
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


class _Unanswered(TrainingFailed):
    """The API did not do what it was asked; `status`: of its answer, None without one."""

    def __init__(self, message: str, hint: str = "", status: int | None = None) -> None:
        super().__init__(message, hint)
        self.status = status


@contextmanager
def _asking(verb: str, resource: str, namespace: str) -> Iterator[None]:
    """A block with a request to the API, whose failure is _Unanswered. The message has neither headers nor body, which
    may hold more than a person should see."""
    try:
        yield
    except _client_errors() as error:
        status: int | None = getattr(error, "status", None)
        reason = f"{status or ''} {getattr(error, 'reason', None) or type(error).__name__}".strip()
        hint = f"allow `{verb}` on `{resource}` (docs/devices.md lists all rights)" if status in REFUSED else HINT
        message = f"Kubernetes did not {verb} {resource} in the namespace {namespace}: {reason}"
        raise _Unanswered(message, hint, status) from error


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
        """Asks at most every POLL_SECONDS, and logs what keeps the pods from starting. TrainingFailed when the cluster
        has not answered for AWAY_SECONDS, or refuses the question."""
        if self._code is not None or time.monotonic() - self._asked < POLL_SECONDS:
            return self._code
        self._asked = time.monotonic()
        try:
            with _asking("get", "jobs/status", self.namespace):
                job = self.batch.read_namespaced_job_status(self.name, self.namespace)
        except _Unanswered as error:
            if error.status == GONE:
                self._code = 1  # a person deleted it
            elif error.status in REFUSED or time.monotonic() - self._answered > AWAY_SECONDS:
                raise
            return self._code
        self._answered = time.monotonic()
        for condition in job.status.conditions or []:
            if condition.status == "True" and condition.type in CODES:
                self._code = CODES[condition.type]
                self._keep(f"Job {self.name}: {condition.type}: {condition.reason or ''} {condition.message or ''}")
        if self._code is None:
            self._log_waiting()
        return self._code

    def end(self) -> None:
        """Cancel the job; its pods end it at a checkpoint, and kill what is inactive. Then let Kubernetes delete the
        Job: the next run of the folder waits for the end of its pods. An error of that is logged, since the result or
        the error of the job counts."""
        try:
            if self._code is None:
                self.files.cancel.touch()
                wait_for_end(self._has_ended, untouched(self.files.ending, ENDING_SECONDS))
        finally:
            try:
                self._delete()
            except _Unanswered as error:
                hint = f"kubectl delete job,service -n {self.namespace} {self.name}"
                self.report.log(f"{error.message}; to delete it: {hint}")

    def _has_ended(self) -> bool:
        """False where the cluster does not say: then the files of the pods do."""
        try:
            return self.ended() is not None
        except _Unanswered as error:
            self._log_once(error.message)
            return False

    def delete_earlier(self) -> None:
        """Delete the Job that an earlier run left, with its Service, and wait until its pods have ended: they would
        write into the same checkpoints. TrainingFailed when the cluster refuses, or does not answer."""
        self._delete()
        while self._exists():
            self._log_once(
                f"waiting for the pods of the Job {self.name} of an earlier run to end; where their machine is lost: "
                f"kubectl delete pod --force -n {self.namespace} -l {INSTANCE}={self.name}"
            )
            self.report.alive()
            time.sleep(POLL_SECONDS)

    def _delete(self) -> None:
        """Request the end of the Job, which exists until its pods have ended, and of the Service."""
        deletes = {"jobs": self.batch.delete_namespaced_job, "services": self.core.delete_namespaced_service}
        for resource, delete in deletes.items():
            try:
                with _asking("delete", resource, self.namespace):
                    delete(self.name, self.namespace, propagation_policy="Foreground")
            except _Unanswered as error:
                if error.status != GONE:
                    raise

    def _exists(self) -> bool:
        try:
            with _asking("get", "jobs/status", self.namespace):
                self.batch.read_namespaced_job_status(self.name, self.namespace)
        except _Unanswered as error:
            if error.status == GONE:
                return False
            raise
        return True

    def _log_waiting(self) -> None:
        """What the pods wait for, when it changes: a GPU, the image. A right to list pods is not needed."""
        try:
            with _asking("list", "pods", self.namespace):
                pods = self.core.list_namespaced_pod(self.namespace, label_selector=f"{INSTANCE}={self.name}")
        except _Unanswered as error:
            return self._log_once(f"what the pods wait for is not known: {error.message}")
        texts = dict.fromkeys(text for pod in pods.items for text in _waiting(pod))
        return self._log_once(f"the pods wait: {'; '.join(texts)}" if texts else "")

    def _log_once(self, text: str) -> None:
        """Log a state that lasts; "" for none."""
        if text and text != self._said:
            self.report.log(text)
        self._said = text

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
