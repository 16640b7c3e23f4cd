"""The Kubernetes objects against Kubernetes' own schema, and the official client against a small API server that runs
the command of a Job's pod here."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from finetune_pipeline import errors
from finetune_pipeline.backends import kubernetes
from finetune_pipeline.backends.kubernetes_manifest import manifests, rendezvous
from finetune_pipeline.backends.node import Launch
from finetune_pipeline.config import Backend
from finetune_pipeline.config.backend import Kubernetes
from finetune_pipeline_tests.backends.test_torchrun import Listener, left
from finetune_pipeline_tests.backends.test_torchrun import run as run_torchrun

SCHEMA = json.loads(Path(__file__).with_name("kubernetes_schema.json").read_text("utf-8"))
KINDS = {"Job": "io.k8s.api.batch.v1.Job", "Service": "io.k8s.api.core.v1.Service"}
SETTINGS = {"image": "registry/finetune@sha256:1", "volume_claim": "shared", "mount_path": "/data", "secret": "mlflow"}


def launch_of(nodes: int, device: str = "auto") -> Launch:
    return Launch("a.job", "id1", nodes, 4, 3, None, rendezvous("finetune-1", _nodes(nodes)), device, False)


def _nodes(nodes: int) -> Launch:
    return Launch("a.job", "id1", nodes, 4, 3, None, None, "auto", False)


def check(manifest: dict[str, Any]) -> None:
    jsonschema.Draft202012Validator({**SCHEMA, "$ref": f"#/$defs/{KINDS[manifest['kind']]}"}).validate(manifest)


def made(nodes: int, device: str = "auto", **settings: Any) -> list[dict[str, Any]]:
    chosen = Kubernetes.model_validate({**SETTINGS, **settings})
    return manifests("finetune-1", launch_of(nodes, device), chosen, "/data/job/launch.json", {"A": "1"})


def test_the_objects_are_valid_for_kubernetes() -> None:
    pod = {"nodeSelector": {"gpu": "h100"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]}
    for manifest in [*made(1), *made(3, pod=pod, resources={"memory": "64Gi", "cpu": "8"})]:
        check(manifest)
    wrong = made(1)[0]
    wrong["spec"]["template"]["spec"]["nodeSelectors"] = {}
    with pytest.raises(jsonschema.ValidationError, match="nodeSelectors"):
        check(wrong)


def test_several_machines_are_an_indexed_job_that_finds_its_first_pod() -> None:
    service, job = made(3)
    assert (job["spec"]["completions"], job["spec"]["parallelism"], job["spec"]["backoffLimit"]) == (3, 3, 9)
    assert job["spec"]["completionMode"] == "Indexed"
    assert service["metadata"]["name"] == job["spec"]["template"]["spec"]["subdomain"] == "finetune-1"
    assert service["spec"]["selector"].items() <= job["spec"]["template"]["metadata"]["labels"].items()
    assert launch_of(3).rendezvous == f"finetune-1-0.finetune-1:{service['spec']['ports'][0]['port']}"


def test_each_process_gets_a_gpu_unless_none_is_asked_for() -> None:
    (container,) = made(1)[-1]["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"nvidia.com/gpu": "4"}
    assert container["envFrom"] == [{"secretRef": {"name": "mlflow"}}]  # no secret value is in the manifest
    (container,) = made(1, device="cpu")[-1]["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {}


class Cluster(ThreadingHTTPServer):
    """Keeps Jobs, and runs the command of a new one's pod as a process of this machine: in a folder of its own, and
    with the variables of the manifest and its Secret alone."""

    def __init__(self, container: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.container = container
        self.secret: dict[str, str] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.pods: dict[str, subprocess.Popen[bytes]] = {}
        self.log: list[str] = []
        self.pending: list[dict[str, Any]] = []
        self.refused: dict[tuple[str, str], int] = {}  # method and a part of the path: the status that is answered
        self.conditions = ("Complete", "Failed")
        self.lost: set[str] = set()  # Jobs with a pod whose machine is lost: they are not gone once they are deleted

    def create(self, job: dict[str, Any]) -> None:
        check(job)
        name = job["metadata"]["name"]
        (container,) = job["spec"]["template"]["spec"]["containers"]
        image = {key: os.environ[key] for key in ("PATH", "PYTHONPATH")}
        given = {each["name"]: each.get("value") or self._of_secret(each["valueFrom"]) for each in container["env"]}
        self.jobs[name] = job
        self.pods[name] = subprocess.Popen(
            [sys.executable, *container["command"][1:]], env={**image, **self.secret, **given}, cwd=self.container
        )

    def _of_secret(self, source: dict[str, Any]) -> str:
        assert source["secretKeyRef"]["name"] == SETTINGS["secret"]
        return self.secret[source["secretKeyRef"]["key"]]

    def status(self, name: str) -> dict[str, Any]:
        code = self.pods[name].poll()
        kind = self.conditions[0 if code == 0 else 1]
        conditions = [] if code is None else [{"type": kind, "status": "True", "reason": f"exit {code}"}]
        return {**self.jobs[name], "status": {"conditions": conditions}}

    def delete(self, name: str) -> None:
        if name in self.lost:
            return
        self.jobs.pop(name)
        pod = self.pods.pop(name)
        if pod.poll() is None:
            pod.terminate()
        pod.wait()


class Handler(BaseHTTPRequestHandler):
    """The few paths of the API that the client uses."""

    server: Cluster

    def log_message(self, format: str, *arguments: Any) -> None:
        self.server.log.append(f"{self.command} {self.path}")

    def _refused(self) -> bool:
        """Whether the request was answered with the status that the test wants."""
        for (method, part), status in self.server.refused.items():
            if method == self.command and part in self.path:
                self._answer(status, {})
                return True
        return False

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._refused():
            return
        if self.path.endswith("/jobs"):
            self.server.create(body)
        self._answer(201, body)

    def do_GET(self) -> None:
        if self._refused():
            return None
        if "/pods" in self.path:
            return self._answer(200, {"kind": "PodList", "apiVersion": "v1", "items": self.server.pending})
        name = self.path.split("/")[-2]
        return self._answer(200, self.server.status(name)) if name in self.server.jobs else self._answer(404, {})

    def do_DELETE(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self._refused():
            return None
        name = self.path.split("?")[0].split("/")[-1]
        if "/jobs/" not in self.path or name not in self.server.jobs:
            return self._answer(404, {})
        self.server.delete(name)
        return self._answer(200, {"kind": "Status", "apiVersion": "v1"})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    pytest.importorskip("kubernetes", reason="the extra `kubernetes` is not installed")
    (tmp_path / "container").mkdir()
    server = Cluster(tmp_path / "container")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": {"server": f"http://127.0.0.1:{server.server_port}"}}],
        "users": [{"name": "test", "user": {}}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
    }
    (tmp_path / "kubeconfig").write_text(json.dumps(config), "utf-8")
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path.cwd()), *filter(None, [os.environ.get("PYTHONPATH")])]))
    yield server
    server.lost.clear()
    for name in list(server.jobs):
        server.delete(name)
    server.shutdown()
    server.server_close()


@pytest.fixture
def mark(tmp_path: Path) -> Path:
    folder = tmp_path / "mark"
    folder.mkdir()
    return folder


def run(mark: Path, do: str, report: Listener, restarts: int = 2, **settings: Any) -> Any:
    chosen = {**SETTINGS, "mount_path": str(mark.parent), "context": "test", **settings}
    return run_torchrun(mark, do, report, kind="kubernetes", device="cpu", max_restarts=restarts, kubernetes=chosen)


def test_a_job_runs_in_a_pod_and_is_deleted(cluster: Cluster, mark: Path) -> None:
    unschedulable = {"type": "PodScheduled", "status": "False", "message": "0/3 nodes are available: no GPU"}
    cluster.pending = [{"metadata": {"name": "a"}, "status": {"conditions": [unschedulable]}}]
    report = Listener()
    result = run(mark, "report", report)
    assert (result.rank, result.size) == (0, 2)
    assert report.lines[0].startswith("created the Job finetune-") and "rank 0 of 2" in report.lines
    assert "the pods wait: 0/3 nodes are available: no GPU" in report.lines
    assert not cluster.jobs and not left(mark)


def test_the_error_of_a_rank_reaches_the_caller(cluster: Cluster, mark: Path) -> None:
    with pytest.raises(errors.ModelError, match="layer 3"):
        run(mark, "refuse", Listener())
    assert not cluster.jobs and not left(mark)


def test_a_canceled_job_ends_at_a_checkpoint_and_is_deleted(cluster: Cluster, mark: Path) -> None:
    with pytest.raises(errors.JobCanceled):
        run(mark, "wait", Listener(mark / "waiting-0", mark / "waiting-1"))
    assert (mark / "checkpoint-0").exists() and (mark / "checkpoint-1").exists()
    assert not cluster.jobs and not left(mark)


class Created(Listener):
    """Changes the cluster as soon as the Job is created."""

    def __init__(self, cluster: Cluster, lost: bool = False, **refused: int) -> None:
        super().__init__()
        self.cluster, self.lost, self.refused = cluster, lost, refused

    def log(self, text: str) -> None:
        super().log(text)
        if text.startswith("created the Job"):
            self.cluster.refused = {(method, "finetune-"): status for method, status in self.refused.items()}
            self.cluster.lost = set(self.cluster.jobs) if self.lost else set()


def test_the_result_counts_where_the_pod_of_a_lost_machine_cannot_end(cluster: Cluster, mark: Path) -> None:
    """Kubernetes then never says that the Job is complete, and never deletes it. The next run waits, and says so."""
    cluster.conditions = ("SuccessCriteriaMet", "FailureTarget")
    assert run(mark, "report", Created(cluster, lost=True)).size == 2
    (name,) = cluster.jobs

    class Impatient(Listener):
        def alive(self) -> None:
            if self.lines:
                raise errors.JobCanceled("stopped in the UI")

    report = Impatient()
    with pytest.raises(errors.JobCanceled):
        run(mark, "report", report)
    (line,) = report.lines
    assert f"waiting for the pods of the Job {name}" in line and "kubectl delete pod --force" in line


def test_a_job_fails_before_all_of_its_pods_have_ended(cluster: Cluster, mark: Path) -> None:
    cluster.conditions = ("SuccessCriteriaMet", "FailureTarget")
    with pytest.raises(errors.TrainingFailed, match="FailureTarget: exit 1"):
        run(mark, "die", Listener(), restarts=0)


def test_the_result_counts_where_the_job_cannot_be_deleted(cluster: Cluster, mark: Path) -> None:
    report = Created(cluster, DELETE=500)
    assert run(mark, "report", report).size == 2
    assert "did not delete jobs in the namespace default: 500" in report.lines[-1]
    assert f"kubectl delete job,service -n default {next(iter(cluster.jobs))}" in report.lines[-1]


@pytest.mark.parametrize(("method", "part"), [("DELETE", "/jobs/"), ("POST", "/jobs"), ("GET", "/status")])
def test_an_error_of_the_cluster_at_the_start_is_named(cluster: Cluster, mark: Path, method: str, part: str) -> None:
    cluster.refused = {(method, part): 503}
    with pytest.raises(errors.TrainingFailed, match=r"Kubernetes did not \w+ jobs.* in the namespace default: 503"):
        run(mark, "report", Listener())


def test_without_the_right_to_list_pods_a_training_goes_on(cluster: Cluster, mark: Path) -> None:
    cluster.refused = {("GET", "/pods"): 403}
    report = Listener()
    assert run(mark, "report", report).size == 2
    assert [line for line in report.lines if "did not list pods" in line] == [
        "what the pods wait for is not known: Kubernetes did not list pods in the namespace default: 403 Forbidden"
    ]


def test_a_missing_right_on_the_job_is_an_error_at_once(
    cluster: Cluster, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kubernetes, "ENDING_SECONDS", 1.0)
    with pytest.raises(errors.TrainingFailed, match="did not get jobs/status in the namespace default: 403") as caught:
        run(mark, "wait", Created(cluster, GET=403))
    assert caught.value.hint.startswith("allow `get` on `jobs/status`")
    assert not cluster.jobs


def test_a_pod_records_its_run_where_this_process_looks_for_it(
    cluster: Cluster, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(mark, "report", Listener()).mlflow == f"sqlite:///{mark.parent}/home/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://mlflow.example.com")
    assert run(mark, "report", Listener()).mlflow == "https://mlflow.example.com"
    assert not list(cluster.container.iterdir())


def test_an_address_with_a_password_is_that_of_the_secret(
    cluster: Cluster, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "https://TOKEN@mlflow.example.com")
    cluster.secret["MLFLOW_TRACKING_URI"] = "https://bob:pw@mlflow.mlops.svc"
    assert run(mark, "report", Listener()).mlflow == "https://bob:pw@mlflow.mlops.svc"
    with pytest.raises(errors.TrainingFailed, match="which is not handed to a cluster") as caught:
        run(mark, "report", Listener(), secret=None)
    assert "MLFLOW_TRACKING_PASSWORD" in caught.value.hint and "TOKEN" not in str(caught.value)


def test_a_home_folder_that_is_not_on_the_volume_is_refused(
    cluster: Cluster, mark: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_HOME", "/var/lib/finetune")
    with pytest.raises(errors.TrainingFailed, match=r"home folder /var/lib/finetune is not below") as caught:
        run(mark, "report", Listener())
    assert "FINETUNE_HOME" in caught.value.hint and not cluster.log


def test_a_folder_that_is_not_on_the_volume_is_refused(cluster: Cluster, mark: Path) -> None:
    with pytest.raises(errors.TrainingFailed, match=r"is not below `kubernetes\.mount_path`"):
        run(mark, "report", Listener(), mount_path="/elsewhere")
    assert not cluster.log


def test_the_settings_of_a_cluster_are_complete_or_refused() -> None:
    assert Backend.model_validate({"kind": "kubernetes", "kubernetes": SETTINGS}).kubernetes.gpu_resource
