"""What a managed training has done so far, in `state.json` of its folder: ids that must not be paid for twice.

{"train_file": "file-abc", "validation_file": null, "job": "ftjob-1", "run_id": "1f0c…", "started": 1770000000, …}

The file is replaced after every call that costs something. For the window between a call and this write, uploaded files
and jobs are looked up at the provider first, by name and by label (transfer.py).
"""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

from finetune_pipeline.errors import reading
from finetune_pipeline.store import write_atomic


@dataclass
class ProviderState:
    """`started`: when this training began on this machine (Unix time); `files`: split -> id of the uploaded file;
    `job`: id of the job; `run_id` and `experiment_id`: MLflow's."""

    path: Path
    started: int = 0
    files: dict[str, str] = field(default_factory=dict)
    job: str | None = None
    run_id: str | None = None
    experiment_id: str | None = None

    @staticmethod
    def load(folder: Path) -> ProviderState:
        """The state in the folder; a new one if there is none. StorageError when the file is damaged."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "state.json"
        with reading(path, f"delete {path} and run again: files and job are looked up at the provider"):
            if path.exists():
                return ProviderState(path, **json.loads(path.read_text("utf-8")))
        state = ProviderState(path, int(time.time()))
        state.save()
        return state

    def save(self) -> None:
        """Replace the file at once. StorageError when it cannot be written."""
        plain = {name: value for name, value in asdict(self).items() if name != "path"}
        write_atomic(self.path, json.dumps(plain, indent=1))
