"""User names and passwords in URIs: removed from everything that is shown, logged or stored.

without_credentials("postgresql://anna:secret@db/mlflow")     # "postgresql://db/mlflow"
"""

from __future__ import annotations

import re
from urllib.parse import quote, unquote

SCHEME = re.compile(r"[a-z][a-z0-9+.-]*:/*", re.I)
FILES = ("sqlite:", "sqlite+", "file:")  # their path may contain `@`, and never a password
# A password in the query; text after `&` without a `=` is the rest of a password that contains `&`.
SECRET = re.compile(
    r"([?&][\w.-]*(?:passw|passphrase|pwd|secret|token|api_?key)[\w.-]*=)([^&]*(?:&[^&=]*(?=&|\Z))*)", re.I
)
# Characters that no library encodes, and at which none splits a URI (RFC 3986, section 2.3).
UNRESERVED = re.compile(r"[A-Za-z0-9._~-]+")
NEEDS_ENCODING = re.compile(r"[/?#@\[\]\s\\]|%(?![0-9A-Fa-f]{2})")


def without_credentials(uri: str) -> str:
    """The URI without user and password, and with *** for a password in its query: for messages and process lists.

    Everything up to the last `@` is removed: a password may contain `#`, `/` or `?` that was not encoded. Never raises.
    """
    scheme, _, rest = _split_credentials(uri)
    return scheme + rest


def lacks_encoding(uri: str) -> bool:
    """Whether user or password contain characters that have to be percent-encoded."""
    return NEEDS_ENCODING.search(_split_credentials(uri)[1]) is not None


def hide_credentials(text: str, uri: str) -> str:
    """`text` (a message of a library about `uri`) without the URI's user and password, and with *** for the password
    elsewhere in it: whole, encoded or decoded, or in the parts (a port, a path) into which a library splits a password
    that is not encoded."""
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
