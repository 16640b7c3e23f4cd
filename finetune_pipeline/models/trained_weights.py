"""What a training left in the folder of the `adapter` artifact: weights.json names the method that trained it.

    {"method": "qlora"}

    write_method(folder, "full")
    method_of(folder)               # "full"; "lora" where there is no weights.json
    weight_files("full", names)     # ["model.safetensors"]: which files of the folder hold the weights

- lora: an adapter in peft's format, on the base model
- qlora: the same, on the base model in 4 bits (models/quantization.py)
- full: a whole model with its tokenizer, which replaces the base model
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from finetune_pipeline.errors import StorageError, reading

Method: TypeAlias = Literal["lora", "qlora", "full"]
METHODS: tuple[Method, ...] = get_args(Method)
WEIGHTS = "weights.json"
ADAPTER_FILE = "adapter_model.safetensors"
HINT = "train again: `finetune run`"


def write_method(folder: Path, method: Method) -> None:
    (folder / WEIGHTS).write_text(json.dumps({"method": method}) + "\n", "utf-8")


def method_of(folder: Path) -> Method:
    """How the weights in `folder` were trained. StorageError when weights.json is damaged or names another method."""
    path = folder / WEIGHTS
    if not path.exists():
        return "lora"
    with reading(path, HINT):
        named = json.loads(path.read_text("utf-8"))["method"]
    for method in METHODS:
        if named == method:
            return method
    raise StorageError(f"{path} names the method {named!r}; known: {', '.join(METHODS)}", HINT)


def weight_files(method: Method, names: Iterable[str]) -> list[str]:
    """Those of the file names of an artifact that hold its weights, sorted."""
    if method != "full":
        return [ADAPTER_FILE] if ADAPTER_FILE in set(names) else []
    return sorted(name for name in names if name.endswith(".safetensors"))
