"""The endpoint's ASGI application: OpenAI's chat API in front of the engines.

    curl 127.0.0.1:8311/v1/chat/completions -H "Authorization: Bearer $(cat .finetune/endpoint_key)" \\
         -d '{"model": "support_tickets", "messages": [{"role": "user", "content": "where is HV-48213?"}]}'

    POST /v1/chat/completions   complete or streamed (SSE); `finetune` in the body and x-finetune-* headers: the version
    GET  /v1/models             the values that `model` may have
    GET  /version               what each task serves, since when, and why not what is desired; figures of progress
    GET  /metrics               Prometheus
    GET  /health                no key required: status, identity, number of tasks that cannot be served as desired

Errors are OpenAI's error objects, with what is wrong and what to do: 400, 401, 403 (the header x-finetune-purpose with
another key than the pipeline's), 404, 405, 408 (the body stalled), 413, 422 (on_invalid: reject), 429 with Retry-After,
500 (the model failed, or an unexpected error), 503 while the first models load. One request is handled in endpoint.py,
computed in engine.py, or forwarded (provider_chat.py); supervisor.py determines what is served.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from finetune_pipeline.serve.connection import ClientDisconnected
from finetune_pipeline.serve.endpoint import Endpoint
from finetune_pipeline.serve.model_routes import Route
from finetune_pipeline.serve.openai_schema import ApiError
from finetune_pipeline.serve.version_response import VersionResponse

log = logging.getLogger("finetune.endpoint")


def create_app(endpoint: Endpoint) -> FastAPI:
    """The ASGI application. Its lifespan starts and stops the supervisor, the engines and the traffic log."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        endpoint.metrics.observe(endpoint.supervisor.busy)
        endpoint.supervisor.start()
        yield
        await asyncio.to_thread(endpoint.supervisor.stop)
        await asyncio.to_thread(endpoint.traffic.close)

    app = FastAPI(title="finetune endpoint", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    _add_routes(app, endpoint)
    _add_error_handlers(app, endpoint)
    return app


def _add_routes(app: FastAPI, endpoint: Endpoint) -> None:
    @app.post("/v1/chat/completions", response_model=None)
    async def completions(http: Request) -> Response:
        return await endpoint.respond(http)

    @app.get("/v1/models", response_model=None)
    async def models(http: Request) -> dict[str, Any]:
        endpoint.authorize(http)
        routes = endpoint.supervisor.table.routes
        return {"object": "list", "data": [_model(name, route) for name, route in sorted(routes.items())]}

    @app.get("/version", response_model=None)
    async def version(http: Request) -> VersionResponse:
        endpoint.authorize(http)
        return _version(endpoint)

    @app.get("/metrics", response_model=None)
    async def metrics(http: Request) -> Response:
        endpoint.authorize(http)
        return Response(endpoint.metrics.text(), media_type="text/plain; version=0.0.4")

    @app.api_route("/health", methods=["GET", "HEAD"], response_model=None)
    async def health() -> dict[str, Any]:
        return _health(endpoint)


def _model(name: str, route: Route) -> dict[str, Any]:
    created = int(datetime.fromisoformat(route.since).timestamp())
    model = {"id": name, "object": "model", "created": created, "owned_by": "finetune"}
    return model | {"finetune": {"task": route.task, "version": route.version, "adapter": route.adapter}}


def _version(endpoint: Endpoint) -> VersionResponse:
    supervisor = endpoint.supervisor
    return {
        "identity": endpoint.identity,
        "started": endpoint.started,
        "rounds": supervisor.rounds,
        "steps": supervisor.steps,
        "busy": sum(supervisor.busy()),
        "pid": os.getpid(),
        "tasks": {name: status.to_json() for name, status in supervisor.table.tasks.items()},
    }


def _health(endpoint: Endpoint) -> dict[str, Any]:
    """The errors themselves are in /version, which requires a key."""
    supervisor = endpoint.supervisor
    status = "degraded" if supervisor.failing_tasks else "ok"
    return {
        "status": status if supervisor.ready.is_set() else "starting",
        "failing_tasks": supervisor.failing_tasks,
        "identity": endpoint.identity,
        "started": endpoint.started,
    }


def _add_error_handlers(app: FastAPI, endpoint: Endpoint) -> None:
    def respond(error: ApiError) -> Response:
        endpoint.metrics.refused.labels(error.code).inc()
        return JSONResponse(error.body(), status_code=error.status, headers=error.headers)

    @app.exception_handler(ApiError)
    async def api_error(_: Request, error: ApiError) -> Response:
        return respond(error)

    @app.exception_handler(ClientDisconnected)
    async def client_disconnected(_: Request, __: ClientDisconnected) -> Response:
        return Response(status_code=499)  # nginx's "client closed request"; it is never received

    @app.exception_handler(HTTPException)
    async def http_error(http: Request, error: HTTPException) -> Response:
        message = (
            f"{http.method} {http.url.path}: {error.detail}; the endpoint has POST /v1/chat/completions, GET /v1/models"
        )
        return respond(ApiError(error.status_code, message, "not_found" if error.status_code == 404 else "bad_request"))

    @app.exception_handler(Exception)
    async def unexpected(http: Request, error: Exception) -> Response:
        log.error("%s %s failed", http.method, http.url.path, exc_info=error)
        message = f"an unexpected {type(error).__name__}; see the endpoint's log"
        return respond(ApiError(500, message, "internal_error"))
