"""The desk as a server: create_app() for tests, run(host, port) for `finetune desk` and `finetune up`.

    run("127.0.0.1", 8310)      until SIGINT or SIGTERM; prints the URL, and a first password if there is no user

It listens on loopback only, unless FINETUNE_DESK_PUBLIC=1 is set and a person has created a user: the password of the
first start is in a log. Use a proxy for TLS.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from http import HTTPStatus
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, RedirectResponse
from starlette.exceptions import HTTPException
from starlette.staticfiles import StaticFiles

from finetune_pipeline.config.addresses import in_url, is_loopback, listen
from finetune_pipeline.desk import files, ledger, login, review, security_headers, settings, tasks, users
from finetune_pipeline.desk.attempts import Attempts
from finetune_pipeline.desk.page import page
from finetune_pipeline.desk.private_files import signing_secret
from finetune_pipeline.desk.session import Sessions, SignedOut, login_address
from finetune_pipeline.errors import FinetuneError, ServingError

if TYPE_CHECKING:
    import uvicorn

STATIC = Path(__file__).parent / "static"
PUBLIC = "FINETUNE_DESK_PUBLIC"


def create_app() -> FastAPI:
    """The app. It reads $FINETUNE_DATA and $FINETUNE_HOME at every request: new tasks appear without a restart."""
    app = FastAPI(title="desk", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.attempts = Attempts()
    for module in (login, settings, tasks, ledger, review, files):
        app.include_router(module.router)
    app.add_api_route("/health", lambda: PlainTextResponse("ok"), methods=["GET"])
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_middleware(Sessions, secret=signing_secret())
    app.add_middleware(security_headers.SecurityHeaders)  # added last, so outermost: it sees every response
    app.exception_handler(SignedOut)(_to_login)
    app.exception_handler(HTTPException)(_http_error)
    app.exception_handler(RequestValidationError)(_invalid_url)
    app.exception_handler(FinetuneError)(_finetune_error)
    app.exception_handler(Exception)(_internal_error)
    return app


def run(host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM, and return. PortInUse when another process listens on the port; ServingError when
    the host is not loopback and that was not allowed."""
    import uvicorn

    require_private(host)
    listening = listen(host, port, "FINETUNE_DESK_URL", "the desk")
    password = users.first_start()
    if password is not None:
        print(users.announce(password), flush=True)
    config = uvicorn.Config(
        create_app(), log_level="warning", access_log=False, timeout_graceful_shutdown=5, server_header=False
    )
    threading.Thread(
        target=import_module, args=["scipy.stats"], daemon=True
    ).start()  # takes seconds, so before the first request
    print(f"desk: http://{in_url(host)}:{port}", flush=True)
    with listening:
        _until_stopped(uvicorn.Server(config), listening)


def require_private(host: str) -> None:
    """ServingError unless the host is loopback, or the network is allowed and a person created a user."""
    if is_loopback(host):
        return
    if os.environ.get(PUBLIC) != "1":
        raise ServingError(
            f"the desk would be open to the network on {host}, with the texts of your customers",
            f"use 127.0.0.1 and a proxy with TLS, or set {PUBLIC}=1 to allow it",
        )
    if not users.made_by_person():
        raise ServingError(
            f"the desk would be open to the network on {host} without a user that a person created",
            "create one with `finetune user NAME`; the password of the first start is in a log",
        )


def _until_stopped(server: uvicorn.Server, listening: socket.socket) -> None:
    """Run until uvicorn has shut down after a signal, which it then raises again: the signal is handled here."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        print("desk: stopped", file=sys.stderr)


def _to_login(request: Request, error: SignedOut) -> Response:
    return RedirectResponse(login_address(error.target), 303)


def _http_error(request: Request, error: HTTPException) -> Response:
    phrase = HTTPStatus(error.status_code).phrase
    text = "There is no such page." if error.detail == "Not Found" else error.detail
    return page(request, "error.html", phrase, error.status_code, text=text, hint="", problems=())


def _invalid_url(request: Request, error: RequestValidationError) -> Response:
    return page(request, "error.html", "Bad request", 400, text="This URL is not valid.", hint="", problems=())


def _finetune_error(request: Request, error: FinetuneError) -> Response:
    """An error that a person can fix: a page with its message and hint."""
    problems = getattr(error, "problems", ())
    return page(
        request, "error.html", "This page cannot be shown", 409, text=error.message, hint=error.hint, problems=problems
    )


def _internal_error(request: Request, error: Exception) -> Response:
    """A bug. Starlette raises it again, so that the traceback is in the log."""
    return PlainTextResponse("Internal error: see the log of the desk.", 500, headers=security_headers.ALWAYS)
