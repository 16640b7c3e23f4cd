"""The desk as a program: create_app() for a server or a test, run(host, port) for `finetune desk` and `finetune up`.

    run("127.0.0.1", 8310)      until SIGINT or SIGTERM; says the address, and a first password where there is no user

It listens on this machine alone. On a network it has to be wanted (FINETUNE_DESK_PUBLIC=1), and a person must have
made a user: the password of the first start stands in a log. TLS is a proxy's work.
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
    """The app. Reads $FINETUNE_DATA and $FINETUNE_HOME at every request, so that new tasks appear by themselves."""
    app = FastAPI(title="desk", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.attempts = Attempts()
    for module in (login, settings, tasks, ledger, review, files):
        app.include_router(module.router)
    app.add_api_route("/health", lambda: PlainTextResponse("ok"), methods=["GET"])
    app.mount("/static", StaticFiles(directory=STATIC), name="static")
    app.add_middleware(Sessions, secret=signing_secret())
    app.add_middleware(security_headers.SecurityHeaders)  # added last, so outermost: every answer passes it
    app.exception_handler(SignedOut)(_to_login)
    app.exception_handler(HTTPException)(_http_error)
    app.exception_handler(RequestValidationError)(_bad_address)
    app.exception_handler(FinetuneError)(_curable)
    app.exception_handler(Exception)(_fault)
    return app


def run(host: str, port: int) -> None:
    """Serve until SIGINT or SIGTERM, and return. PortInUse when somebody listens there; ServingError when the host
    would show the desk to the network and that was not asked for."""
    import uvicorn

    require_private(host)
    listening = listen(host, port, "FINETUNE_DESK_URL", "the desk")
    password = users.first_start()
    if password is not None:
        print(f"The desk had no users. Sign in as `steward` with the password {password}", flush=True)
        print("It is shown only now; `finetune user NAME` makes further users, or gives steward a new one.", flush=True)
    config = uvicorn.Config(
        create_app(), log_level="warning", access_log=False, timeout_graceful_shutdown=5, server_header=False
    )
    threading.Thread(target=import_module, args=["scipy.stats"], daemon=True).start()  # seconds, before anybody asks
    print(f"desk: http://{in_url(host)}:{port}", flush=True)
    with listening:
        _until_stopped(uvicorn.Server(config), listening)


def require_private(host: str) -> None:
    """ServingError unless the host is this machine's own, or the network is wanted and somebody made a user."""
    if is_loopback(host):
        return
    if os.environ.get(PUBLIC) != "1":
        raise ServingError(
            f"the desk would be open to the network on {host}, with the questions and answers of your customers",
            f"use 127.0.0.1 and a proxy with TLS, or set {PUBLIC}=1 if you mean it",
        )
    if not users.made_by_person():
        raise ServingError(
            f"the desk would be open to the network on {host} with no user that a person made",
            "make one first: `finetune user NAME`; a password printed at the first start has been in a log",
        )


def _until_stopped(server: uvicorn.Server, listening: socket.socket) -> None:
    """uvicorn shuts down in good order on either signal, and raises it again afterwards: here that is the end."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:
        print("desk: stopped", file=sys.stderr)


def _to_login(request: Request, error: SignedOut) -> Response:
    return RedirectResponse(login_address(error.wanted), 303)


def _http_error(request: Request, error: HTTPException) -> Response:
    phrase = HTTPStatus(error.status_code).phrase
    text = "There is no such page." if error.detail == "Not Found" else error.detail
    return page(request, "error.html", phrase, error.status_code, text=text, hint="", problems=())


def _bad_address(request: Request, error: RequestValidationError) -> Response:
    return page(
        request, "error.html", "Bad request", 400, text="This address is not one of the desk's.", hint="", problems=()
    )


def _curable(request: Request, error: FinetuneError) -> Response:
    """What a person has to fix before the page can be shown: the message and the hint, not a stack of calls."""
    problems = getattr(error, "problems", ())
    return page(request, "error.html", "This needs fixing", 409, text=error.message, hint=error.hint, problems=problems)


def _fault(request: Request, error: Exception) -> Response:
    """A fault of ours. The traceback goes to the log (Starlette raises it again); the page says as much."""
    return PlainTextResponse("The desk made a mistake; its log says which.", 500, headers=security_headers.ALWAYS)
