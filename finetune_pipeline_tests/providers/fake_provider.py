"""A provider on loopback that speaks OpenAI's wire format: files, fine-tuning jobs, events, checkpoints, chat.

    with serving(FakeProvider()) as url: ...        # http://127.0.0.1:41233/v1

A job needs `polls` looks until it has succeeded. `faults` are (method, path prefix) -> what to do with the next
requests there, in order: an HTTP status (0: none), "drop" (the connection is closed before the request is read),
"lose" (the request is done, and the connection is closed instead of the answer), "stall" and "hold" (it is not read, or
done and not answered, until `released` is set).
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response, UploadFile
from fastapi.responses import JSONResponse, StreamingResponse

KEY = "sk-test-0123456789"
MODEL = "gpt-4.1-mini-2025-04-14"


@dataclass
class FakeProvider:
    """What it holds, what it was asked for (`requests`: method and path), and how it misbehaves."""

    polls: int = 2
    with_validation_loss: bool = True
    keeps_metadata: bool = True
    refuse_file: str = ""
    fail_job: str = ""
    models: list[str] = field(default_factory=lambda: [MODEL, "gpt-4.1-nano"])
    tuned: list[str] = field(default_factory=list)  # models that are there without a job
    answers: dict[str, str] = field(default_factory=dict)  # last user message -> the tuned model's answer
    default_answer: str = "red"
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    contents: dict[str, bytes] = field(default_factory=dict)
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    looks: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    chats: list[dict[str, Any]] = field(default_factory=list)
    requests: list[tuple[str, str]] = field(default_factory=list)
    faults: dict[tuple[str, str], list[int | str]] = field(default_factory=dict)
    quota_code: str | None = None
    released: threading.Event = field(default_factory=threading.Event)
    open_chats: int = 0
    most_open_chats: int = 0

    def count(self, method: str, path: str) -> int:
        return sum(request == (method, path) for request in self.requests)

    def fault(self, method: str, path: str) -> int | str | None:
        for (at_method, prefix), queue in self.faults.items():
            if at_method == method and path.startswith(prefix) and queue:
                return queue.pop(0)
        return None


def refusal(status: int, message: str, code: str | None = None) -> Response:
    body = {"error": {"message": message, "type": "error", "param": None, "code": code}}
    return JSONResponse(body, status, headers={"retry-after-ms": "10"})


class Faults:
    """ASGI middleware: authorization, the log of requests, and the faults."""

    def __init__(self, app: Any, provider: FakeProvider) -> None:
        self.app, self.provider = app, provider

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await (await self._answer(scope))(scope, receive, send)

    async def _answer(self, scope: Any) -> Any:
        """The ASGI application that answers this request."""
        path, provider = scope["path"].removeprefix("/v1"), self.provider
        provider.requests.append((scope["method"], path))
        fault = provider.fault(scope["method"], path)
        if dict(scope["headers"]).get(b"authorization") != f"Bearer {KEY}".encode():
            return refusal(401, "Incorrect API key provided: sk-wrong-key-1234.", "invalid_api_key")
        if isinstance(fault, int) and fault:
            return refusal(fault, f"fault {fault}", provider.quota_code)
        if fault == "drop":
            raise ConnectionAbortedError  # uvicorn closes the connection without an answer
        if fault == "lose":
            return self._lose_answer
        if fault == "stall":
            await asyncio.to_thread(provider.released.wait, 60)
        return self._hold_answer if fault == "hold" else self.app

    async def _hold_answer(self, scope: Any, receive: Any, send: Any) -> None:
        async def held(message: Any) -> None:
            await asyncio.to_thread(self.provider.released.wait, 60)
            await send(message)

        await self.app(scope, receive, held)

    async def _lose_answer(self, scope: Any, receive: Any, _: Any) -> None:
        async def lost(message: Any) -> None:
            raise ConnectionAbortedError

        await self.app(scope, receive, lost)


def create_app(provider: FakeProvider) -> FastAPI:
    app = FastAPI()
    _files(app, provider)
    _jobs(app, provider)
    _chat(app, provider)

    @app.get("/v1/models")
    async def models() -> Any:
        data = [{"id": name, "object": "model", "created": 1, "owned_by": "x"} for name in provider.models]
        return {"object": "list", "data": data}

    app.add_middleware(Faults, provider=provider)
    return app


def _files(app: FastAPI, provider: FakeProvider) -> None:
    @app.post("/v1/files")
    async def upload(request: Request) -> Any:
        form = await request.form()
        file = form["file"]
        assert not isinstance(file, str)
        content = await _read(file)
        id_ = f"file-{len(provider.files) + 1}"
        provider.contents[id_] = content
        provider.files[id_] = {
            "id": id_,
            "object": "file",
            "bytes": len(content),
            "created_at": int(time.time()),
            "filename": file.filename,
            "purpose": str(form["purpose"]),
            "status": "error" if provider.refuse_file else "processed",
            "status_details": provider.refuse_file or None,
        }
        return provider.files[id_]

    @app.get("/v1/files")
    async def listed() -> Any:
        return {"object": "list", "data": list(provider.files.values()), "has_more": False}

    @app.get("/v1/files/{id_}")
    async def one(id_: str) -> Any:
        return provider.files.get(id_) or refusal(404, f"No such File object: {id_}")


async def _read(file: Any) -> bytes:
    content: bytes = await file.read()
    return content


def _jobs(app: FastAPI, provider: FakeProvider) -> None:
    @app.post("/v1/fine_tuning/jobs")
    async def create(request: Request) -> Any:
        body = await request.json()
        id_ = f"ftjob-{len(provider.jobs) + 1}"
        provider.jobs[id_] = {
            "id": id_,
            "object": "fine_tuning.job",
            "created_at": int(time.time()),
            "finished_at": None,
            "fine_tuned_model": None,
            "error": None,
            "hyperparameters": {"n_epochs": 3},
            "organization_id": "org-1",
            "result_files": [],
            "status": "validating_files",
            "trained_tokens": None,
            "integrations": [],
            **{name: body.get(name) for name in ("model", "training_file", "validation_file", "seed", "method")},
            "metadata": body.get("metadata") if provider.keeps_metadata else None,
            "suffix": body.get("suffix"),
        }
        return provider.jobs[id_]

    @app.get("/v1/fine_tuning/jobs")
    async def listed() -> Any:
        return {"object": "list", "data": list(provider.jobs.values())[::-1], "has_more": False}

    @app.get("/v1/fine_tuning/jobs/{id_}")
    async def one(id_: str) -> Any:
        if id_ not in provider.jobs:
            return refusal(404, f"No such fine-tuning job: {id_}")
        job = provider.jobs[id_]
        if job["status"] not in ("succeeded", "failed", "cancelled"):
            provider.looks[id_] += 1
            _advance(provider, job, provider.looks[id_])
        return job

    @app.post("/v1/fine_tuning/jobs/{id_}/cancel")
    async def cancel(id_: str) -> Any:
        provider.jobs[id_]["status"] = "cancelled"
        return provider.jobs[id_]

    @app.get("/v1/fine_tuning/jobs/{id_}/events")
    async def events(id_: str) -> Any:
        return {"object": "list", "data": _events(provider, id_)[::-1], "has_more": False}

    @app.get("/v1/fine_tuning/jobs/{id_}/checkpoints")
    async def checkpoints(id_: str) -> Any:
        if not provider.with_validation_loss:
            return refusal(404, "not found")
        data = [
            {
                "id": f"ckpt-{step}",
                "object": "fine_tuning.job.checkpoint",
                "created_at": 1,
                "fine_tuned_model_checkpoint": f"ft:{MODEL}:acme::{step}",
                "fine_tuning_job_id": id_,
                "metrics": {"step": step, "full_valid_loss": loss},
                "step_number": step,
            }
            for step, loss in ((10, 0.9), (20, 0.4))
        ]
        return {"object": "list", "data": data, "has_more": False}


def _advance(provider: FakeProvider, job: dict[str, Any], looks: int) -> None:
    job["status"] = "running" if looks > 1 else "queued"
    if looks <= provider.polls:
        return
    if provider.fail_job:
        error = {"code": "invalid_training_file", "message": provider.fail_job, "param": "training_file"}
        job |= {"status": "failed", "error": error}
        return
    tokens = sum(len(line.split()) for line in provider.contents[job["training_file"]].decode().splitlines())
    name = f"ft:{job['model']}:acme:{job['suffix']}:{job['id']}"
    job |= {
        "status": "succeeded",
        "fine_tuned_model": name,
        "trained_tokens": 3 * tokens,
        "finished_at": int(time.time()),
    }


def _events(provider: FakeProvider, id_: str) -> list[dict[str, Any]]:
    looks = provider.looks[id_]
    found = [_event(id_, 0, f"Created fine-tuning job: {id_}", None)]
    for step in range(1, min(looks, provider.polls) * 10 + 1):
        data: dict[str, Any] = {"step": step, "total_steps": provider.polls * 10, "train_loss": 2.0 / step}
        if provider.with_validation_loss:
            data["valid_loss"] = 2.5 / step
        found.append(_event(id_, step, f"Step {step}/{provider.polls * 10}", data))
    return found


def _event(id_: str, number: int, message: str, data: dict[str, Any] | None) -> dict[str, Any]:
    kind = "metrics" if data else "message"
    event = {"id": f"ftevent-{id_}-{number}", "object": "fine_tuning.job.event", "created_at": 100 + number}
    return event | {"level": "info", "message": message, "type": kind, "data": data}


def _chat(app: FastAPI, provider: FakeProvider) -> None:
    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Any:
        body = await request.json()
        provider.chats.append(body)
        provider.open_chats += 1
        provider.most_open_chats = max(provider.most_open_chats, provider.open_chats)
        await asyncio.sleep(0.02)
        provider.open_chats -= 1
        known = [*provider.models, *provider.tuned, *(job["fine_tuned_model"] for job in provider.jobs.values())]
        if body["model"] not in known:
            return refusal(404, f"The model `{body['model']}` does not exist", "model_not_found")
        text = provider.default_answer
        if body["model"] not in provider.models:
            text = provider.answers.get(body["messages"][-1]["content"], text)
        if body.get("response_format"):
            text = json.dumps({"label": text})
        words = sum(len(message["content"].split()) for message in body["messages"])
        usage = {"prompt_tokens": words, "completion_tokens": 2, "total_tokens": words + 2}
        id_ = f"chatcmpl-{len(provider.chats)}"
        if body.get("stream"):
            return StreamingResponse(_chunks(id_, body["model"], text, usage), media_type="text/event-stream")
        return {
            "id": id_,
            "object": "chat.completion",
            "created": 1,
            "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
            "usage": usage,
        }


def _chunks(id_: str, model: str, text: str, usage: dict[str, int]) -> Iterator[str]:
    """The answer as server-sent events, two characters each."""
    head = {"id": id_, "object": "chat.completion.chunk", "created": 1, "model": model}
    deltas: list[tuple[dict[str, str], str | None]] = [({"role": "assistant", "content": ""}, None)]
    deltas += [({"content": text[i : i + 2]}, None) for i in range(0, len(text), 2)]
    for delta, reason in [*deltas, ({}, "stop")]:
        yield f"data: {json.dumps(head | {'choices': [{'index': 0, 'delta': delta, 'finish_reason': reason}]})}\n\n"
    yield f"data: {json.dumps(head | {'choices': [], 'usage': usage})}\n\ndata: [DONE]\n\n"


@contextmanager
def serving(provider: FakeProvider) -> Iterator[str]:
    """The provider on a free port of 127.0.0.1; the address to use as `base_url`."""
    config = uvicorn.Config(create_app(provider), host="127.0.0.1", port=0, log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        provider.released.set()
        server.should_exit = True
        thread.join(10)


__all__ = ["KEY", "MODEL", "FakeProvider", "UploadFile", "serving"]
