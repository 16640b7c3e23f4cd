"""The files of a model folder: checks, sizes, hashes and the tokenizer. Reads headers and JSON only, without torch.

check(folder)                  # ModelError: no safetensors, tokenizer or chat template, or code of its own is needed
dimensions(folder)             # {"parameters": 134515008, "hidden": 576, "layers": 30, "vocabulary": 49152, ...}
token_counter(folder)(["hi"])  # [1]
with writing(folder): ...      # StorageError on a full disk, whatever safetensors raises
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from math import prod
from pathlib import Path
from typing import Any

from finetune_pipeline.errors import ModelError
from finetune_pipeline.models.text_part import text_name
from finetune_pipeline.store import storage_error
from finetune_pipeline.store.file_hashes import file_hash


def check(folder: Path) -> None:
    """ModelError unless the folder has config, safetensors, tokenizer and chat template, and needs no Python code of
    its own."""
    if not (folder / "config.json").exists():
        raise ModelError(f"{folder} holds no model: it has no config.json", "check `base.path` in task.yaml")
    check_safe(folder)
    if not list(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} holds no safetensors weights, no weights at all", "convert the weights to safetensors first"
        )
    if not (folder / "tokenizer.json").exists():
        raise ModelError(f"{folder} has no tokenizer.json", "save its tokenizer with the current transformers")
    if not template(folder):
        raise ModelError(
            f"{folder} has no chat template, so the format of its prompts is unknown",
            "choose an instruct model, or put a chat_template.jinja into the folder",
        )


def check_safe(folder: Path) -> None:
    """ModelError for what would run code when it is opened: weights that are only pickled, or a model that transformers
    has only with Python code of the folder. Code that is not needed is left alone: transformers' own class is used."""
    pickles = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
    if pickles and not list(folder.glob("*.safetensors")):
        raise ModelError(
            f"{folder} holds no safetensors weights, only {', '.join(pickles)}: pickle, which runs code when it is "
            "opened",
            "convert the weights to safetensors first",
        )
    for name in ("config.json", "tokenizer_config.json"):
        if (folder / name).exists() and _needs_code(folder, name):
            raise ModelError(
                f"{folder} needs code of its own (auto_map in {name}), which is never executed",
                "choose a base model whose architecture and tokenizer are part of transformers",
            )


def _needs_code(folder: Path, name: str) -> bool:
    """Whether `auto_map` in the file is all there is: the model's type is not one of transformers, or there is no
    tokenizer.json, which is read without code. Phi 3 and 4 have an `auto_map` and need none."""
    settings = _read(folder / name)
    if "auto_map" not in settings:
        return False
    if name == "tokenizer_config.json":
        return not (folder / "tokenizer.json").exists()
    from transformers.models.auto.auto_mappings import CONFIG_MAPPING_NAMES  # a second, and no torch

    return settings.get("model_type") not in CONFIG_MAPPING_NAMES


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}", "get the model's files again") from error
    return content


@contextmanager
def writing(where: Path) -> Iterator[None]:
    """A block that writes weights: errors of the disk become StorageError. safetensors raises SafetensorError, which is
    no OSError and holds the errno only in its text."""
    from safetensors import SafetensorError

    try:
        yield
    except SafetensorError as error:
        number = re.search(r"os error (\d+)", str(error))
        raise storage_error(OSError(int(number[1]) if number else None, str(error)), str(where)) from error
    except OSError as error:
        raise storage_error(error, str(where)) from error


def template(folder: Path) -> str:
    """The chat template, from chat_template.jinja or tokenizer_config.json; "" when there is none."""
    jinja = folder / "chat_template.jinja"
    if jinja.exists():
        return jinja.read_text("utf-8")
    settings = folder / "tokenizer_config.json"
    return str(_read(settings).get("chat_template") or "") if settings.exists() else ""


def dimensions(folder: Path) -> dict[str, int]:
    """Sizes from config.json and the headers of the weights: parameters (tied weights count once), hidden size, layers,
    vocabulary and context in tokens (0 if config.json has none). Of a model that reads images, those of its text part;
    the vocabulary is then that of the embedding where config.json leaves it to transformers (Gemma 3)."""
    config = _read(folder / "config.json")
    text, shapes = config.get("text_config", config), _text_shapes(folder)
    rows = next((shape[0] for name, shape in shapes.items() if name.endswith("embed_tokens.weight")), 0)
    return {
        "parameters": sum(prod(shape) for shape in shapes.values()),
        "hidden": int(text["hidden_size"]),
        "layers": int(text["num_hidden_layers"]),
        "vocabulary": int(text.get("vocab_size") or rows),
        "context": int(text.get("max_position_embeddings") or 0),
    }


def tensor_shapes(folder: Path) -> dict[str, list[int]]:
    """Name and shape of every tensor, from the headers of the weights. ModelError for a damaged file, or for none."""
    from safetensors import SafetensorError, safe_open

    shapes: dict[str, list[int]] = {}
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, framework="numpy") as weights:
                names = list(weights.keys())
                shapes |= {name: weights.get_slice(name).get_shape() for name in names}
        except SafetensorError as error:
            raise ModelError(f"{path} is damaged: {error}", "get the model's files again") from error
    if not shapes:
        raise ModelError(f"{folder} holds no safetensors weights, no weights at all", "put the model's files back")
    return shapes


def _text_shapes(folder: Path) -> dict[str, list[int]]:
    """The tensors that are loaded (text_part.py), by their names in the model."""
    model_type = _read(folder / "config.json").get("model_type")
    named = ((text_name(name, model_type), shape) for name, shape in tensor_shapes(folder).items())
    return {name: shape for name, shape in named if name is not None}


def linear_names(folder: Path) -> set[str]:
    """The names of the modules with a matrix in the decoder layers, such as q_proj, from the headers of the weights."""
    matrices = [name for name, shape in _text_shapes(folder).items() if len(shape) == 2 and ".layers." in name]
    return {name.removesuffix(".weight").rpartition(".")[2] for name in matrices if name.endswith(".weight")}


def weights_hash(folder: Path) -> str:
    """SHA-256 of the weights file; where there are several, of their names and hashes."""
    check(folder)
    paths = sorted(folder.glob("*.safetensors"))
    if len(paths) == 1:
        return file_hash(paths[0])
    return sha256("".join(f"{path.name}:{file_hash(path)}\n" for path in paths).encode()).hexdigest()


def tokenizer_hash(folder: Path) -> str:
    """SHA-256 of tokenizer and chat template: a change of either changes what the same weights generate."""
    return sha256((file_hash(folder / "tokenizer.json") + template(folder)).encode()).hexdigest()


def token_counter(folder: Path) -> Callable[[Sequence[str]], list[int]]:
    """A function from texts to their numbers of tokens, without chat template and special tokens."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(texts: Sequence[str]) -> list[int]:
        return [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    return count
