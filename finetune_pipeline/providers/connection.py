"""The connection to a provider: its address, its key from the environment, and its errors as ours, with a hint.

    with api_call("list the models", where):        # ServingError: https://api.openai.com/v1 refused the API key …
        connect(where).models.list()

The key is read from the environment variable that the declaration names, and appears in no message, file or log.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from finetune_pipeline.config import Provider
from finetune_pipeline.config.credentials import without_credentials
from finetune_pipeline.config.provider import address_problem
from finetune_pipeline.errors import DeclarationError, FinetuneError, ModelError, ServingError

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

URL_VARIABLE = "OPENAI_BASE_URL"
DEFAULT_URL = "https://api.openai.com/v1"
TIMEOUT_SECONDS = 120.0  # of one request; an upload may take longer as long as bytes move
MAX_RETRIES = 4  # by the client, with backoff: lost connections, 408, 409, 429, 5xx
MAX_MESSAGE = 600  # characters of the provider's message
INSTALL = "install it: `.venv/bin/uv pip install -p .venv -c requirements.lock -e '.[openai]'` in the project's folder"
RUN_AGAIN = "run again: what was uploaded and started is found again, and is not paid for twice"


@dataclass(frozen=True, slots=True)
class Connection:
    """Address (without credentials) and key of a provider; `repr` hides the key."""

    url: str
    key: str = field(repr=False)
    key_variable: str = "OPENAI_API_KEY"

    def hide(self, text: str) -> str:
        """`text` without the key."""
        return text.replace(self.key, "***") if self.key else text


def connection_of(
    provider: Provider, recorded_url: str | None = None, environment: Mapping[str, str] | None = None
) -> Connection:
    """The connection that is declared. Without `base_url` in the declaration: $OPENAI_BASE_URL, else `recorded_url`
    (where a model was trained), else OpenAI's address. DeclarationError when the key is missing or the address unsafe.
    """
    values = os.environ if environment is None else environment
    url = provider.base_url or values.get(URL_VARIABLE, "").strip() or recorded_url or DEFAULT_URL
    if problem := address_problem(url):
        raise DeclarationError(f"{URL_VARIABLE}={without_credentials(url)}: {problem}", "correct the variable")
    key = values.get(provider.key_variable, "").strip()
    if not key:
        raise DeclarationError(
            f"the environment variable {provider.key_variable}, which holds the provider's API key, is not set",
            f"set {provider.key_variable} where the pipeline runs, or name another variable in "
            "`train.provider.key_variable`",
        )
    return Connection(url, key, provider.key_variable)


def connect(where: Connection, max_retries: int = MAX_RETRIES) -> OpenAI:
    """The official client. ModelError when the package is not installed."""
    client: OpenAI = _openai().OpenAI(**_settings(where, max_retries))
    return client


def connect_async(where: Connection, max_retries: int = MAX_RETRIES) -> AsyncOpenAI:
    """The official client for asyncio. ModelError when the package is not installed."""
    client: AsyncOpenAI = _openai().AsyncOpenAI(**_settings(where, max_retries))
    return client


def _settings(where: Connection, max_retries: int) -> dict[str, Any]:
    return {"api_key": where.key, "base_url": where.url, "timeout": TIMEOUT_SECONDS, "max_retries": max_retries}


def _openai() -> Any:
    try:
        import openai
    except ImportError as error:
        raise ModelError("the package `openai`, which talks to the provider, is not installed", INSTALL) from error
    return openai


@contextmanager
def api_call(action: str, where: Connection) -> Iterator[None]:
    """A block that calls the API: its errors become ours, with `action` ("upload train.jsonl") and a hint."""
    openai = _openai()
    try:
        yield
    except openai.OpenAIError as error:
        raise translated(error, action, where) from None  # the client's error holds the request with its key


def translated(error: Exception, action: str, where: Connection) -> FinetuneError:
    """The error of the client as one of ours: what failed, the provider's reason, and what to do."""
    openai = _openai()
    if isinstance(error, openai.APITimeoutError):
        return ServingError(f"{where.url} did not answer in time: could not {action}", RUN_AGAIN)
    if isinstance(error, openai.APIConnectionError):
        cause = where.hide(str(error.__cause__ or error))[:MAX_MESSAGE]
        return ServingError(f"the connection to {where.url} failed: could not {action}: {cause}", RUN_AGAIN)
    reason = where.hide(message_of(error))
    message = f"{where.url} could not {action}: {reason}"
    status, code = getattr(error, "status_code", 0), str(getattr(error, "code", None) or "")
    if code == "insufficient_quota":
        return ServingError(message, "add credit, or raise the limit of the project, at the provider; then run again")
    if status == 401:
        return ServingError(message, f"check the key in {where.key_variable}, and that it belongs to {where.url}")
    if status == 403:
        return ServingError(message, f"give the key in {where.key_variable} access to files, fine-tuning and the model")
    if status == 404 or code in ("model_not_found", "DeploymentNotFound"):
        return ModelError(message, "check the name of the model and the address (`train.provider`)")
    if status == 429:
        return ServingError(message, "wait, or lower `train.provider.requests_at_once`; then run again")
    if 400 <= status < 500:
        return ServingError(message, "read the provider's reason, correct `train.provider` or the rows, and run again")
    return ServingError(message, RUN_AGAIN)


def message_of(error: Exception) -> str:
    """The provider's message, in one line, with the HTTP status."""
    body = getattr(error, "body", None)
    text = body.get("message") if isinstance(body, Mapping) else None
    status = getattr(error, "status_code", None)
    line = " ".join(str(text or error).split())[:MAX_MESSAGE]
    return f"{line} (HTTP {status})" if status and str(status) not in line else line
