"""Where the trials of a search run: in one process of the backend, because they share what it holds (train/shared.py).

backend = search_backend(task.train)      # Backend(kind="ray", nodes=1, processes_per_node=1, …)

Several processes compute the same training as one, so that a trial is the training that follows it. Only where the
weights are spread over the processes, one of them may be too small for a trial.
"""

from __future__ import annotations

from finetune_pipeline.backends.deployment import backend_for, one_process
from finetune_pipeline.config import Backend, Train
from finetune_pipeline.errors import DeclarationError
from finetune_pipeline.train.assets import shards


def search_backend(rules: Train) -> Backend:
    """The backend of the training, with one process. DeclarationError where the training's weights are spread over
    several."""
    backend = backend_for(rules.backend)
    processes = backend.nodes * backend.processes_per_node
    if processes > 1 and shards(backend, rules.method):
        raise DeclarationError(
            f"`search` compares trainings in one process, and the weights of this one are spread over {processes}",
            "set `train.backend.shard: never` if one device has room for the whole training; otherwise remove `search`",
        )
    return one_process(backend)
