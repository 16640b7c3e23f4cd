"""`finetune train TASK --show-tokens`: the view of what a training would learn, from the tokenizer alone."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from finetune_pipeline.cli.tokens import shown
from finetune_pipeline.errors import DeclarationError, GateRefused, TrainingFailed
from finetune_pipeline.inference.chat_template import end_ids, end_ids_of
from finetune_pipeline.store import TaskStore
from finetune_pipeline.train.method import load_base
from finetune_pipeline.train.preview import preview_of
from finetune_pipeline_tests.artifacts import task, task_store
from finetune_pipeline_tests.baseline.color_task import base_and_split, color_task
from finetune_pipeline_tests.train.setup import RULES


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TaskStore:
    return task_store(tmp_path, monkeypatch)


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """The tiny model without its weights, whose hash and sizes alone are needed."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


def test_the_view_and_the_audit_need_no_weights(model: Path, store: TaskStore, monkeypatch: pytest.MonkeyPatch) -> None:
    declared = color_task(model)
    with pytest.raises(GateRefused, match="has no training rows yet"):
        preview_of(declared, store)
    base_and_split(store, declared)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", None)  # not called
    preview = preview_of(declared, store)
    assert preview.audit.passed and preview.view["of_rows"] == 30 and len(preview.view["rows"]) == 10
    assert [row["id"] for row in preview.view["general"]] == ["replay-001", "replay-002"]


def test_the_terminal_shows_kinds_by_color_and_by_brackets(model: Path, store: TaskStore) -> None:
    declared = color_task(model)
    base_and_split(store, declared)
    preview = preview_of(declared, store)
    plain, colored = io.StringIO(), io.StringIO()
    Console(file=plain, width=200, markup=False).print(shown(preview))
    Console(file=colored, width=200, markup=False, force_terminal=True, color_system="standard").print(shown(preview))
    text = plain.getvalue()
    assert "10 of 30 training rows" in text and "Say the color." in text
    assert any(f"⟦{color}<|im_end|>⟧" in text for color in ("red", "green", "blue"))
    assert "2 <|im_end|>" in text and "✓ every row has supervised tokens" in text
    assert "\x1b[" in colored.getvalue() and "\x1b[" not in text


def test_faulty_rows_are_shown_before_any_training(model: Path, store: TaskStore) -> None:
    config = json.loads((model / "config.json").read_text("utf-8"))
    (model / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 30}), "utf-8")
    declared = color_task(model)
    base_and_split(store, declared)
    out = io.StringIO()
    Console(file=out, width=200, markup=False).print(shown(preview_of(declared, store)))
    assert "✗ no row is longer than the model's context of 30 tokens: 30 rows: t0" in out.getvalue()


def test_what_cannot_be_shown_is_an_error_with_a_hint(model: Path, store: TaskStore) -> None:
    declared = color_task(model)
    base_and_split(store, declared)
    pairs = declared.model_copy(update={"train": declared.train.model_copy(update={"objective": "dpo"})})
    with pytest.raises(TrainingFailed, match="none of the 30 training rows has a rejected completion"):
        preview_of(pairs, store)
    with pytest.raises(DeclarationError, match="provider renders and tokenizes"):
        preview_of(task(train={"provider": {"model": "gpt-x"}}), store)


def test_the_ends_of_turns_are_those_of_the_loaded_model(model: Path) -> None:
    for settings in (None, {"eos_token_id": [0, 2]}, {}):
        if settings is not None:
            (model / "generation_config.json").write_text(json.dumps(settings), "utf-8")
        base = load_base(model, RULES)
        assert end_ids_of(model, base.tokenizer) == end_ids(base.model, base.tokenizer)
