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
from finetune_pipeline.models.model_source import prepare
from finetune_pipeline.records import Artifact, Example, Message, Silent, content_id
from finetune_pipeline.serve import deployment_state, transitions
from finetune_pipeline.serve.api_keys import PIPELINE, ApiKeys, pipeline_key
from finetune_pipeline.serve.app import create_app
from finetune_pipeline.serve.deployment_state import Version
from finetune_pipeline.serve.endpoint import Endpoint
from finetune_pipeline.serve.identity import endpoint_identity
from finetune_pipeline.serve.metrics import Metrics
from finetune_pipeline.serve.supervisor import Supervisor
from finetune_pipeline.serve.traffic import TrafficLog
from finetune_pipeline.store import TaskStore, home

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
        self.wait_until(
            lambda: (self.status(task)["champion"] or {}).get("version") == version, f"version {version} of {task}"
        )


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
