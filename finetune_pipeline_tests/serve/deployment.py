"""Tasks with a base model and trained adapters in a real store, and an endpoint on loopback that serves them."""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from finetune_pipeline.config import Task, task_from
from finetune_pipeline.config.addresses import listen
from finetune_pipeline.materialize import materialize
from finetune_pipeline.models.model_source import prepare
from finetune_pipeline.records import Artifact, Example, Message, Silent, Verdict, content_id, dumps
from finetune_pipeline.serve import deployment_state, transitions
from finetune_pipeline.serve.api_keys import PIPELINE, ApiKeys, pipeline_key
from finetune_pipeline.serve.app import create_app
from finetune_pipeline.serve.assets import live_version
from finetune_pipeline.serve.deployment_state import Version
from finetune_pipeline.serve.endpoint import Endpoint
from finetune_pipeline.serve.identity import endpoint_identity
from finetune_pipeline.serve.metrics import Metrics
from finetune_pipeline.serve.supervisor import Supervisor
from finetune_pipeline.serve.traffic import TrafficLog
from finetune_pipeline.store import TaskStore, home
from finetune_pipeline.tracking.client import connect

MakeAdapter = Callable[[int], Path]
KEY = "key-of-the-tests"
LIMIT = 16
ROWS = 12
TEST = [
    Example(f"{n:016x}", (Message("user", f"prompt {n}"), Message("assistant", "a")), "test", f"test.csv:{n}")
    for n in range(ROWS)
]


@dataclass
class Deployed:
    """One task: its declaration, its store and its base model."""

    task: Task
    store: TaskStore
    base: Artifact

    @property
    def name(self) -> str:
        return self.task.name

    def adapter(self, folder: Path) -> Artifact:
        """The files in `folder` as an adapter artifact; the same one for the same folder."""
        key = content_id(str(folder))
        artifact = self.store.find("adapter", key)
        if artifact is not None:
            return artifact
        with self.store.scratch("adapter") as scratch:
            shutil.copytree(folder, scratch, dirs_exist_ok=True)
            return self.store.commit(
                "adapter", key, scratch, self._facts("prompt", "answer", base_model=self.base.content_hash)
            )

    def version(self, number: int, adapter: Artifact) -> Version:
        serve = self.task.serve
        return Version(
            version=number, adapter=adapter.content_hash, adapter_key=adapter.key, base=self.base.content_hash,
            registered=f"registered-{number}", evaluation=f"evaluation-{number}", served_as=self.task.served_as,
            max_new_tokens=LIMIT, on_invalid=serve.on_invalid, log_text=serve.log_text, at="2026-01-05T10:00:00+00:00",
            precision=serve.precision,
        )  # fmt: skip

    def promote(self, number: int, folder: Path, **settings: Any) -> Version:
        version = replace(self.version(number, self.adapter(folder)), **settings)
        deployment_state.update(self.store, lambda state: transitions.promote(state, version, state.champion))
        return version

    def finished(self, asset: str, files: Mapping[str, str], inputs: Mapping[str, str] | None = None) -> Artifact:
        with self.store.scratch(asset) as scratch:
            for name, text in files.items():
                (scratch / name).write_text(text, "utf-8")
            facts = {"summary": {}, "inputs": dict(inputs or {}), "verdict": None}
            return self.store.commit(asset, content_id(*files.values()), scratch, facts)

    def _facts(self, *sections: str, **inputs: str) -> dict[str, Any]:
        declared = {name: getattr(self.task, name).model_dump(mode="json", by_alias=True) for name in sections}
        return {"summary": {}, "inputs": inputs, "declaration": declared, "verdict": None}


def declare(root: Path, name: str, model: Path, **sections: Any) -> Deployed:
    """A task of this name in `root` with the base model `model`."""
    declaration: dict[str, Any] = {
        "name": name,
        "sources": [{"path": "raw/test.csv"}],
        "base": {"path": str(model), "license": "apache-2.0"},
        "prompt": {"system": f"Answer {name} with one word."},
        **sections,
    }
    task = task_from(declaration, name)
    (root / name).mkdir(parents=True)
    (root / name / "task.yaml").write_text(json.dumps(declaration), "utf-8")
    store = TaskStore(name)
    deployed = Deployed(task, store, base=None)  # type: ignore[arg-type]
    with store.scratch("base_model") as scratch:
        facts = prepare(task.base, name, Silent())[1]
        (scratch / "base_model.json").write_text(json.dumps(facts), "utf-8")
        deployed.base = store.commit("base_model", "base", scratch, deployed._facts("base"))
    return deployed


@dataclass
class RunningEndpoint:
    """An endpoint that listens at `url`, in a thread of this process."""

    url: str
    endpoint: Endpoint

    def get(self, path: str, key: str = KEY) -> httpx.Response:
        return httpx.get(self.url + path, headers={"authorization": f"Bearer {key}"}, timeout=30)

    def post(self, body: Any, key: str = KEY, **headers: str) -> httpx.Response:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        url = f"{self.url}/v1/chat/completions"
        return httpx.post(url, content=raw, headers={"authorization": f"Bearer {key}", **headers}, timeout=60)

    def complete(self, model: str, prompt: str = "where is my parcel?", **body: Any) -> httpx.Response:
        return self.post({"model": model, "messages": [{"role": "user", "content": prompt}], **body})

    def status(self, task: str) -> dict[str, Any]:
        status: dict[str, Any] = self.get("/version").json()["tasks"][task]
        return status

    def wait_until(self, condition: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + 120
        while not condition():
            assert time.monotonic() < end, f"timed out waiting for {what}"
            time.sleep(0.05)

    def wait_until_serves(self, task: str, version: int) -> None:
        def served() -> bool:
            status = self.get("/version").json()["tasks"].get(task, {})  # absent until the first round after its making
            return bool((status.get("champion") or {}).get("version") == version)

        self.wait_until(served, f"version {version} of {task}")


@contextmanager
def running(keys: dict[str, str] | None = None) -> Iterator[RunningEndpoint]:
    """The application on a free port of loopback, in a thread of this process."""
    import hashlib

    metrics = Metrics()
    digests = {name: hashlib.sha256(key.encode()).digest() for name, key in ({"tests": KEY} | (keys or {})).items()}
    digests[PIPELINE] = hashlib.sha256(pipeline_key(home()).encode()).digest()
    endpoint = Endpoint(
        ApiKeys(digests), Supervisor(metrics), TrafficLog(metrics.lines_lost.inc), metrics, endpoint_identity()
    )
    listening = listen("127.0.0.1", 0, "FINETUNE_ENDPOINT_URL", "the endpoint")
    server = uvicorn.Server(uvicorn.Config(create_app(endpoint), log_level="warning", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    running_endpoint = RunningEndpoint(f"http://127.0.0.1:{listening.getsockname()[1]}", endpoint)
    try:
        running_endpoint.wait_until(endpoint.supervisor.ready.is_set, "the endpoint to be ready")
        yield running_endpoint
    finally:
        server.should_exit = True
        thread.join(10)


@dataclass
class Deployment:
    """An endpoint, and tasks that are deployed to it."""

    server: RunningEndpoint
    root: Path
    model: Path
    make_adapter: MakeAdapter

    def task(self, name: str, **sections: Any) -> Deployed:
        task = declare(self.root / "data", name, self.model, **sections)
        for _ in range(3):
            register(name)
        return task


def register(name: str) -> None:
    """Add a version to MLflow's registry, for the alias to point to."""
    client = connect().MlflowClient()
    if not client.search_registered_models(f"name='{name}'"):
        client.create_registered_model(name)
    client.create_model_version(name, "file:///nowhere")


def evaluated_answers(task: Deployed, folder: Path | None) -> dict[str, str]:
    """The evaluation's answers to these rows."""
    from finetune_pipeline.inference.generate import Generation, generate
    from finetune_pipeline.inference.loading import load

    prompts = {row.id: row.chat(task.task.prompt.system) for row in TEST}
    loaded = load(Path(str(task.task.base.path)), folder)
    return {a.id: a.text for a in generate(loaded, prompts, task.task.answer, Generation("tuned", LIMIT))}


def candidate(task: Deployed, number: int, folder: Path, answers: dict[str, str]) -> Artifact:
    """Write the artifacts of the stages up to the registered model; returns the adapter."""
    adapter = task.adapter(folder)
    task.store.point(adapter)
    rows = "\n".join(dumps(row.to_json()) for row in TEST)
    task.finished("data_split", {"test.jsonl": rows})
    lines = [dumps({"id": id_, "variant": "tuned", "text": text}) for id_, text in answers.items()]
    report_json = {"max_new_tokens": LIMIT, "champion": live_version(task.task, task.store)}
    report = task.finished("eval_report", {"answers.jsonl": "\n".join(lines), "report.json": json.dumps(report_json)})
    verdict = Verdict("release_decision", True, report.content_hash, "PROMOTE")
    with task.store.scratch("release_decision") as scratch:
        (scratch / "decision.json").write_text(json.dumps({"outcome": "PROMOTE", "number": number}), "utf-8")
        facts = {"summary": {}, "inputs": {}, "verdict": verdict.to_json()}
        task.store.commit("release_decision", f"decision{report.content_hash}", scratch, facts)
    model = {"name": task.name, "version": number, "adapter": adapter.content_hash, "evaluation": report.content_hash}
    task.finished("registered_model", {"model.json": json.dumps(model)})
    return adapter


def deploy(task: Deployed) -> Artifact:
    return materialize("deployed_endpoint", task.task, task.store)
