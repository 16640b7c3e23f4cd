"""Where the four servers listen, from the environment; loopback and fixed ports by default.

FINETUNE_DAGSTER_URL   http://127.0.0.1:3000     Dagster's UI
FINETUNE_DESK_URL      http://127.0.0.1:8310     the desk (review, reports)
FINETUNE_ENDPOINT      http://127.0.0.1:8311     the OpenAI-compatible endpoint
FINETUNE_MLFLOW_URL    http://127.0.0.1:8312     MLflow's UI; where $MLFLOW_TRACKING_URI names a server, that one

No address is shown with the password in it: `without_credentials` for an address, `hide_credentials` for what a library
says about one.
"""

from __future__ import annotations

import os
import re
import socket
from urllib.parse import quote, unquote, urlsplit

from finetune_pipeline.errors import PortInUse

SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:/*", re.I)
FILES = ("sqlite:", "sqlite+", "file:")  # their path may hold `@`, and never a password
# A password in the query; what stands after `&` without a `=` is the rest of one that holds `&`.
SECRET = re.compile(
    r"([?&][\w.-]*(?:passw|passphrase|pwd|secret|token|api_?key)[\w.-]*=)([^&]*(?:&[^&=]*(?=&|\Z))*)", re.I
)
# What no library encodes, and where none takes an address apart (RFC 3986, section 2.3).
UNRESERVED = re.compile(r"[A-Za-z0-9._~-]+")
NEEDS_ENCODING = re.compile(r"[/?#@\[\]\s\\]|%(?![0-9A-Fa-f]{2})")
DEFAULTS = {
    "FINETUNE_DAGSTER_URL": "http://127.0.0.1:3000",
    "FINETUNE_DESK_URL": "http://127.0.0.1:8310",
    "FINETUNE_ENDPOINT": "http://127.0.0.1:8311",
    "FINETUNE_MLFLOW_URL": "http://127.0.0.1:8312",
}


def address(variable: str) -> str:
    """The URL that `variable` names, without a slash at its end."""
    if variable == "FINETUNE_MLFLOW_URL" and (server := mlflow_server()):
        return server
    return (os.environ.get(variable) or DEFAULTS[variable]).rstrip("/")


def mlflow_server() -> str | None:
    """The URL of an MLflow server that runs elsewhere, as it may be shown; None where MLflow is a database of ours."""
    uri = os.environ.get("MLFLOW_TRACKING_URI", "")
    return without_credentials(uri).rstrip("/") if uri.startswith(("http://", "https://")) else None


def without_credentials(uri: str) -> str:
    """The URI without user and password, and with *** for a password in its query: for messages and process lists.

    Everything up to the last `@` is left out: a password may hold `#`, `/` or `?` that nobody encoded. Raises nothing,
    whatever the URI is.
    """
    scheme, _, rest = _split_credentials(uri)
    return scheme + rest


def lacks_encoding(uri: str) -> bool:
    """Whether user or password hold characters that have to be percent-encoded there."""
    return NEEDS_ENCODING.search(_split_credentials(uri)[1]) is not None


def hide_credentials(text: str, uri: str) -> str:
    """`text`, which a library says about `uri`, without the URI's user and password, and with *** for a password that
    stands elsewhere in it: whole, encoded or decoded, or in the parts that a library takes it for where characters in
    it are not encoded (a port, a path)."""
    credentials = _split_credentials(uri)[1]
    name, _, password = credentials.partition(":")
    secrets = (password or name, *(found[2] for found in SECRET.finditer(uri)))
    forms = {form for secret in secrets for form in _forms(secret) if form}
    if credentials:
        text = text.replace(f"{credentials}@", "")
    if not forms:
        return text
    either = "|".join(re.escape(form) for form in sorted(forms, key=len, reverse=True))
    return re.sub(rf"(?:(?<!\w)|(?<=%[0-9a-f]{{2}}))(?:{either})(?!\w)", "***", text, flags=re.I)


def _forms(secret: str) -> set[str]:
    plain = unquote(secret)
    return {secret, plain, quote(plain, safe=""), *UNRESERVED.findall(secret), *UNRESERVED.findall(plain)}


def _split_credentials(uri: str) -> tuple[str, str, str]:
    """Scheme with its slashes, user and password, and the rest (with *** for passwords in the query) of a URI."""
    masked = SECRET.sub(r"\1***", uri)
    scheme = SCHEME.match(masked)
    if scheme is None or masked.startswith(FILES):
        return "", "", masked
    credentials, _, rest = masked[scheme.end() :].rpartition("@")
    return scheme[0], credentials, rest


def host_and_port(url: str) -> tuple[str, int]:
    parts = urlsplit(url)
    return parts.hostname or "127.0.0.1", parts.port or (443 if parts.scheme == "https" else 80)


def require_free(variable: str, what: str) -> tuple[str, int]:
    """Host and port of `variable`; PortInUse when somebody listens there already."""
    host, port = host_and_port(address(variable))
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise PortInUse(
                f"{what} cannot listen on {host}:{port}: {error.strerror}",
                f"stop what listens there, or choose another address: {variable}=http://{host}:{port + 1000}",
            ) from error
    return host, port
