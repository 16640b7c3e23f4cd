"""The connection to MLflow: the configured module, and its failures as StorageError without credentials.

with mlflow_call("set an alias"):          # StorageError: MLflow at http://… could not set an alias: …
    connect().MlflowClient().set_registered_model_alias("support_tickets", "champion", "3")
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from finetune_pipeline.config.credentials import hide_credentials, lacks_encoding, without_credentials
from finetune_pipeline.errors import StorageError
from finetune_pipeline.records import SILENT
from finetune_pipeline.store import machine_lock, mlflow_uri

# An unresponsive MLflow is given up after two attempts of 20 s; MLflow's defaults are eight attempts of 120 s.
HTTP_LIMITS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "20", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1"}
CONNECTION_HINT = "check that it runs, and that MLFLOW_TRACKING_URI with user and password is right; then run again"
ENCODING_HINT = (
    "check MLFLOW_TRACKING_URI, and percent-encode special characters in its user and password "
    "(`#` is %23, `/` is %2F, `?` is %3F, `@` is %40, a space is %20); then run again"
)
REFUSALS = (
    "UNAUTHENTICATED",
    "CUSTOMER_UNAUTHORIZED",
    "PERMISSION_DENIED",
    "ENDPOINT_NOT_FOUND",
    "INVALID_PARAMETER_VALUE",
)
DRIVER_HINT = (
    "install what is missing; for PostgreSQL: `.venv/bin/uv pip install -p .venv -c requirements.lock -e '.[postgres]'`"
    " in the project's folder, and MLFLOW_TRACKING_URI=postgresql+psycopg2://… (with the driver's name); then run again"
)


@contextmanager
def mlflow_call(action: str, hint: str = CONNECTION_HINT) -> Iterator[None]:
    """A block, or a decorated function, that calls MLflow: a failure of MLflow is a StorageError that names `action`.

    MLflow's own errors hold its address with the password: the message hides it, and the error is not kept as cause.
    """
    try:
        yield
    except mlflow_errors() as error:
        raise StorageError(
            f"MLflow at {server()} could not {action}: {error_line(error)}", _hint(error, hint)
        ) from None


def _hint(error: Exception, otherwise: str) -> str:
    if isinstance(error, ImportError):
        return DRIVER_HINT
    return ENCODING_HINT if isinstance(error, ValueError) or lacks_encoding(mlflow_uri()) else otherwise


def mlflow_errors() -> tuple[type[Exception], ...]:
    """What calls to MLflow raise, for a server as well as for a database: ImportError is a missing database driver,
    ValueError an invalid address."""
    from mlflow.exceptions import MlflowException
    from requests import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    return MlflowException, RequestException, SQLAlchemyError, OSError, ImportError, ValueError


def is_refusal(error: Exception) -> bool:
    """Whether the error is of an address or a login that a person has to correct, and not an outage that ends by
    itself."""
    from mlflow.exceptions import MlflowException

    if isinstance(error, MlflowException):
        return error.error_code in REFUSALS or lacks_encoding(mlflow_uri())
    return isinstance(error, ImportError | ValueError) or lacks_encoding(mlflow_uri())


def answers() -> bool:
    """Whether MLflow answers a small request."""
    try:
        connect().search_experiments(max_results=1)
    except mlflow_errors():
        return False
    return True


def error_line(error: Exception) -> str:
    """The first line of an error's message, without the user and password of any address in it."""
    text = hide_credentials(str(error), mlflow_uri())
    line = next(iter(text.splitlines()), "") or type(error).__name__
    return re.sub(r"://[^/?#\s]*@", "://", line)


def server() -> str:
    """The address of MLflow without credentials."""
    return without_credentials(mlflow_uri())


def load() -> Any:
    """The module mlflow: telemetry off, short timeouts. Sends no request."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("DO_NOT_TRACK", "true")
    for name, value in HTTP_LIMITS.items():
        os.environ.setdefault(name, value)
    import mlflow

    return mlflow


def connect() -> Any:
    """The module mlflow, with tracking and registry at the configured address."""
    mlflow = load()
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("mlflow.store.db.utils").addFilter(_hide_in_log)  # logs each failed connection with its address
    if mlflow.get_tracking_uri() != mlflow_uri():
        with machine_lock("mlflow", SILENT, "MLflow's database is being created"):  # two processes would conflict
            mlflow.set_tracking_uri(mlflow_uri())
            mlflow.set_registry_uri(mlflow_uri())
            mlflow.search_experiments(max_results=1)
    return mlflow


def _hide_in_log(record: logging.LogRecord) -> bool:
    """A logging filter: passes every record, with the credentials of MLflow's address hidden."""
    record.msg, record.args = hide_credentials(record.getMessage(), mlflow_uri()), ()
    return True


def none_if_missing(request: Callable[[], Any]) -> Any:
    """The result of `request`, or None where MLflow has no such run, model or version. Outages are raised."""
    from mlflow.exceptions import MlflowException

    try:
        return request()
    except MlflowException as error:
        # INVALID_PARAMETER_VALUE: the text is not the id of a run
        if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return None
        raise
