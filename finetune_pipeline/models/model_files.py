"""A model's folder seen from outside: whether it can be used, what it measures, and the hashes that name its content.

Reads headers and JSON only; no torch. What it is not: the way to the folder (`models/base_model.py`).

    check(folder)             # ModelError: no safetensors, no tokenizer, no chat template, or code of its own
    with writing(folder): ...  # StorageError on a full disk, however the library words it
    dimensions(folder)        # {"parameters": 134515008, "hidden": 576, "layers": 30, "vocabulary": 49152, ...}
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

from finetune_pipeline.errors import ModelError
from finetune_pipeline.store import storage_error
from finetune_pipeline.store.file_hashes import file_hash


def check(folder: Path) -> None:
    """ModelError unless the folder holds a model this pipeline can use: safetensors, tokenizer, template, no code."""
    if not (folder / "config.json").exists():
        raise ModelError(f"{folder} holds no model: there is no config.json", "check `base.path` in task.yaml")
    if not list(folder.glob("*.safetensors")):
        pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
        why = (
            f"only {', '.join(pickles)}: pickle, which runs code when it is opened" if pickles else "no weights at all"
        )
        raise ModelError(f"{folder} holds no safetensors weights, {why}", "convert the weights to safetensors first")
    config = _read(folder / "config.json")
    if "auto_map" in config:
        raise ModelError(f"{folder} needs code of its own to run (auto_map), which is never executed", "choose another")
    if not (folder / "tokenizer.json").exists():
        raise ModelError(f"{folder} has no tokenizer.json", "save its tokenizer with a current transformers first")
    if not template(folder):
        raise ModelError(
            f"{folder} has no chat template, so nobody knows how its prompts look",
            "choose an instruct model, or put a chat_template.jinja into the folder",
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}", "get the model's files again") from error
    return found


@contextmanager
def writing(where: Path) -> Iterator[None]:
    """Around what writes weights: StorageError when there is no room. safetensors reports that as an error of its own,
    which is no OSError and holds the system's number in its text alone."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise storage_error(OSError(int(number[1]) if number else None, str(error)), str(where)) from error
    except OSError as error:
        raise storage_error(error, str(where)) from error


def template(folder: Path) -> str:
    """The chat template, wherever a tokenizer keeps it; empty when there is none."""
    jinja = folder / "chat_template.jinja"
    if jinja.exists():
        return jinja.read_text("utf-8")
    settings = folder / "tokenizer_config.json"
    return str(_read(settings).get("chat_template") or "") if settings.exists() else ""


def dimensions(folder: Path) -> dict[str, int]:
    """Sizes, from the configuration and the headers of the weights (tied weights count once)."""
    from safetensors import SafetensorError, safe_open

    config = _read(folder / "config.json")
    text = config.get("text_config", config)
    parameters = 0
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as weights:
                names = list(weights.keys())
                parameters += sum(prod(weights.get_slice(name).get_shape()) for name in names)
        except SafetensorError as error:
            raise ModelError(f"{path} is damaged: {error}", "get the model's files again") from error
    return {
        "parameters": parameters,
        "hidden": int(text["hidden_size"]),
        "layers": int(text["num_hidden_layers"]),
        "vocabulary": int(text["vocab_size"]),
        "context": int(text.get("max_position_embeddings") or 0),
    }


def weights_hash(folder: Path) -> str:
    """SHA-256 of the weights: of the file, or of all names and hashes where there are several."""
    check(folder)
    paths = sorted(folder.glob("*.safetensors"))
    if len(paths) == 1:
        return file_hash(paths[0])
    return sha256("".join(f"{path.name}:{file_hash(path)}\n" for path in paths).encode()).hexdigest()


def tokenizer_hash(folder: Path) -> str:
    """SHA-256 of tokenizer and chat template: with another one, the same weights are another model."""
    return sha256((file_hash(folder / "tokenizer.json") + template(folder)).encode()).hexdigest()
