"""The endpoint's URLs and its process: OpenAI's chat API in front of the embedded engine.

    python -m finetune_pipeline.serve.app --port 8311         (`finetune serve` and `make up` call `run`)
    curl 127.0.0.1:8311/v1/chat/completions -H "Authorization: Bearer $(cat .finetune/endpoint_key)" \\
         -d '{"model": "support_tickets", "messages": [{"role": "user", "content": "where is HV-48213?"}]}'

    POST /v1/chat/completions   plain or streamed (SSE); `finetune` in the body and x-finetune-* headers say who it was
    GET  /v1/models             what may stand in `model`
    GET  /version               what each task serves, since when, and why not what is desired; figures of progress
    GET  /metrics               Prometheus
    GET  /health                without a key: whether it is up, whose it is, how many tasks cannot be served as desired

Errors are OpenAI's error objects: 400 (what is wrong, and the hint), 401, 404, 413, 422 (on_invalid: reject), 429 with
Retry-After, 503 while the first models load. What it is not: what is done with one request (endpoint.py), what is
served (supervisor.py), or how (engine.py).
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from finetune_pipeline.backends.local import job_environment
from finetune_pipeline.backends.worker import end_with
from finetune_pipeline.config.addresses import listen
from finetune_pipeline.errors import FinetuneError
from finetune_pipeline.records import content_id
from finetune_pipeline.serve.api_keys import VARIABLE, key_file, load_keys
from finetune_pipeline.serve.connection import ClientGone
from finetune_pipeline.serve.endpoint import Endpoint
from finetune_pipeline.serve.metrics import Metrics
from finetune_pipeline.serve.openai_schema import ApiError
from finetune_pipeline.serve.supervisor import Supervisor, serving_status_json
from finetune_pipeline.serve.traffic import TrafficLog
from finetune_pipeline.store import data_root, home, write_atomic

GRACE_SECONDS = 1  # for answers under way when the endpoint is stopped
log = logging.getLogger("finetune.endpoint")


def identity() -> str:
    """Whose endpoint this is: same machine, same home, same data."""
    return content_id(socket.gethostname(), str(home()), str(data_root()))


def create_app(endpoint: Endpoint) -> FastAPI:
    """The ASGI application. Its lifespan starts and ends supervisor, engines and traffic log."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        endpoint.metrics.observe(endpoint.supervisor.busy)
        endpoint.supervisor.start()
        yield
        await asyncio.to_thread(endpoint.supervisor.stop)
        await asyncio.to_thread(endpoint.traffic.close)

    app = FastAPI(title="finetune endpoint", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    _routes(app, endpoint)
    _errors(app, endpoint)
    return app


def _routes(app: FastAPI, endpoint: Endpoint) -> None:
    @app.post("/v1/chat/completions", response_model=None)
    async def completions(http: Request) -> Response:
        return await endpoint.answer(http)

    @app.get("/v1/models", response_model=None)
    async def models(http: Request) -> dict[str, Any]:
        endpoint.authorize(http)
        rows = [
            {
                "id": name,
                "object": "model",
                "created": int(datetime.fromisoformat(r.since).timestamp()),
                "owned_by": "finetune",
            }
            | {"finetune": {"task": r.task, "version": r.version, "adapter": r.adapter}}
            for name, r in sorted(endpoint.supervisor.table.routes.items())
        ]
        return {"object": "list", "data": rows}

    @app.get("/version", response_model=None)
    async def version(http: Request) -> dict[str, Any]:
        endpoint.authorize(http)
        tasks = {name: serving_status_json(standing) for name, standing in endpoint.supervisor.table.tasks.items()}
        supervisor = endpoint.supervisor
        running, waiting = supervisor.busy()
        progress = {"rounds": supervisor.rounds, "steps": supervisor.steps, "busy": running + waiting}
        progress["pid"] = os.getpid()
        return {"identity": endpoint.identity, "started": endpoint.started, **progress, "tasks": tasks}

    @app.get("/metrics", response_model=None)
    async def metrics(http: Request) -> Response:
        endpoint.authorize(http)
        return Response(endpoint.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.api_route("/health", methods=["GET", "HEAD"], response_model=None)
    async def health() -> dict[str, Any]:
        """Which task fails, and why, stands in /version: that takes a key."""
        supervisor = endpoint.supervisor
        state = "degraded" if supervisor.failing else "ok"
        return {
            "status": state if supervisor.ready.is_set() else "starting",
            "failing_tasks": supervisor.failing,
            "identity": endpoint.identity,
            "started": endpoint.started,
        }


def _errors(app: FastAPI, endpoint: Endpoint) -> None:
    def respond(error: ApiError) -> Response:
        endpoint.metrics.refused.labels(error.code).inc()
        return JSONResponse(error.body(), status_code=error.status, headers=error.headers)

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> Response:
        return respond(error)

    @app.exception_handler(ClientGone)
    async def client_gone(_: Request, __: ClientGone) -> Response:
        return Response(status_code=499)  # nobody reads it

    @app.exception_handler(HTTPException)
    async def http_error(http: Request, error: HTTPException) -> Response:
        message = (
            f"{http.method} {http.url.path}: {error.detail}; the endpoint has POST /v1/chat/completions, GET /v1/models"
        )
        return respond(ApiError(error.status_code, message, "not_found" if error.status_code == 404 else "bad_request"))

    @app.exception_handler(Exception)
    async def unexpected(http: Request, error: Exception) -> Response:
        log.error("%s %s failed", http.method, http.url.path, exc_info=error)
        return respond(
            ApiError(500, f"an unexpected {type(error).__name__}; the endpoint's log has more", "internal_error")
        )


# the process ------------------------------------------------------------------------------------------------


def run(host: str, port: int, only: str | None = None, announce: Path | None = None) -> None:
    """Serve until SIGINT or SIGTERM. Port 0 takes a free one; `announce` is a file that gets the URL; `only` serves one
    task alone. PortInUse when somebody listens there, ServingError when others could reach it without keys."""
    os.environ.update(job_environment())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)
    keys = load_keys(os.environ, home(), host)
    listening = listen(host, port, "FINETUNE_ENDPOINT", "the endpoint")
    url = f"http://{host}:{listening.getsockname()[1]}"
    metrics = Metrics()
    endpoint = Endpoint(keys, Supervisor(metrics, only), TrafficLog(metrics.lines_lost.inc), metrics, identity())
    server = Server(endpoint)
    for which in (signal.SIGINT, signal.SIGTERM):  # before uvicorn takes over, and when it raises them again at its end
        signal.signal(which, lambda *_: setattr(server, "should_exit", True))
    where = VARIABLE if os.environ.get(VARIABLE) else key_file(home())
    log.info("the endpoint listens on %s; keys: %s", url, where)
    if announce is not None:
        write_atomic(announce, url)
    server.run(sockets=[listening])
    log.info("the endpoint has stopped")
    if endpoint.supervisor.computes:
        _leave()


class Server(uvicorn.Server):
    """uvicorn's, which at its end gives answers under way some time, then an error: it would cancel them."""

    def __init__(self, endpoint: Endpoint) -> None:
        self._endpoint = endpoint
        super().__init__(
            uvicorn.Config(
                create_app(endpoint),
                log_level="warning",
                access_log=False,
                ws="none",
                timeout_graceful_shutdown=GRACE_SECONDS + 4,
                lifespan="on",
            )
        )

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        giving_up = asyncio.get_running_loop().call_later(GRACE_SECONDS, self._endpoint.supervisor.give_up)
        await super().shutdown(sockets)
        giving_up.cancel()


def _leave() -> None:
    """End the process without the interpreter's own end: that would pull the thread which still computes out of torch's
    C++ code, and the process would abort ("terminate called without an active exception")."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8311)
    parser.add_argument("--only", help="serve this task alone")
    parser.add_argument("--announce", type=Path, help="file that gets the URL (for --port 0)")
    parser.add_argument("--with-parent", type=int, metavar="PID", help="end when this process, our parent, ends")
    given = parser.parse_args()
    if given.with_parent:
        end_with(given.with_parent)
    try:
        run(given.host, given.port, given.only, given.announce)
    except FinetuneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
