"""The endpoint's process: listens, serves the application, and stops on SIGINT or SIGTERM.

python -m finetune_pipeline.serve.server --port 8311         (`finetune serve` and `make up` call `run`)
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import uvicorn

from finetune_pipeline.backends.local import job_environment
from finetune_pipeline.backends.worker import end_with
from finetune_pipeline.config.addresses import DEFAULTS, host_and_port, in_url, listen
from finetune_pipeline.errors import FinetuneError
from finetune_pipeline.serve.api_keys import KEYS_VARIABLE, key_file, load_keys
from finetune_pipeline.serve.app import create_app
from finetune_pipeline.serve.endpoint import Endpoint
from finetune_pipeline.serve.identity import endpoint_identity
from finetune_pipeline.serve.metrics import Metrics
from finetune_pipeline.serve.supervisor import Supervisor
from finetune_pipeline.serve.traffic import TrafficLog
from finetune_pipeline.store import home, write_atomic

GRACE_SECONDS = 1  # for the running requests when the endpoint stops
log = logging.getLogger("finetune.endpoint")


def run(host: str, port: int, only: str | None = None, announce: Path | None = None) -> None:
    """Serve until SIGINT or SIGTERM. Port 0 takes a free one; the URL is written to the file `announce`; `only` serves
    one task. PortInUse when another process listens there, ServingError when other machines could connect and no keys
    are set."""
    os.environ.update(job_environment())
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for library in ("httpx", "httpx2", "openai"):
        logging.getLogger(library).setLevel(logging.WARNING)
    keys = load_keys(os.environ, home(), host)
    listening = listen(host, port, "FINETUNE_ENDPOINT_URL", "the endpoint")
    url = f"http://{in_url(host)}:{listening.getsockname()[1]}"
    metrics = Metrics()
    supervisor = Supervisor(metrics, only)
    endpoint = Endpoint(keys, supervisor, TrafficLog(metrics.lines_lost.inc), metrics, endpoint_identity())
    server = Server(endpoint)
    for number in (signal.SIGINT, signal.SIGTERM):  # in force before uvicorn's handlers, and after them at its end
        signal.signal(number, lambda *_: setattr(server, "should_exit", True))
    source = KEYS_VARIABLE if os.environ.get(KEYS_VARIABLE) else key_file(home())
    log.info("the endpoint listens on %s; keys: %s", url, source)
    if announce is not None:
        write_atomic(announce, url)
    server.run(sockets=[listening])
    log.info("the endpoint has stopped")
    if supervisor.is_alive:
        _exit_at_once()


class Server(uvicorn.Server):
    """uvicorn's server; at its end, running requests get GRACE_SECONDS, then an error. uvicorn would cancel them."""

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
        abort = asyncio.get_running_loop().call_later(GRACE_SECONDS, self._endpoint.supervisor.abort)
        await super().shutdown(sockets)
        abort.cancel()


def _exit_at_once() -> None:
    """End the process without the interpreter's finalization: that would end a thread within torch's C++ code, and the
    process would abort ("terminate called without an active exception")."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    host, port = host_and_port(DEFAULTS["FINETUNE_ENDPOINT_URL"])
    parser.add_argument("--host", default=host)
    parser.add_argument("--port", type=int, default=port)
    parser.add_argument("--only", help="serve this task only")
    parser.add_argument("--announce", type=Path, help="write the URL to this file (for --port 0)")
    parser.add_argument("--with-parent", type=int, metavar="PID", help="end when this process, the parent, ends")
    arguments = parser.parse_args()
    if arguments.with_parent:
        end_with(arguments.with_parent)
    try:
        run(arguments.host, arguments.port, arguments.only, arguments.announce)
    except FinetuneError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)


if __name__ == "__main__":
    main()
