"""The identity of an endpoint: a hash of the machine, the home folder and the data folder.

    GET /health
    {"status": "ok", "identity": "5b1f…", …}

The pipeline deploys only through an endpoint with its own identity.
"""

from __future__ import annotations

import socket

from finetune_pipeline.records import content_id
from finetune_pipeline.store import data_root, home


def endpoint_identity() -> str:
    """Equal in all processes with the same host name, home and data."""
    return content_id(socket.gethostname(), str(home()), str(data_root()))
