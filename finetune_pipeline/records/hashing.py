"""The identifier that the project derives from content: 64 bits of a SHA-256.

content_id("where is my parcel?", "tickets")      # "3bef7720c009aba1"
"""

from __future__ import annotations

import hashlib


def content_id(*parts: str) -> str:
    """16 hexadecimal digits of the SHA-256 of `parts`, each preceded by its length, so that ("ab", "c") and
    ("a", "bc") differ."""
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode("utf-8", "surrogatepass")
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.hexdigest()[:16]
