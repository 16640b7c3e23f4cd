"""What Dagster shows of a training: its losses as an image, and what is learned of a few rows."""

from __future__ import annotations

import base64
from pathlib import Path
from xml.etree import ElementTree

import pytest
from transformers import AutoTokenizer

from finetune_pipeline.defs.metadata import _training
from finetune_pipeline.train.token_view import markdown, token_view
from finetune_pipeline.train.tokenize import tokenize_pairs
from finetune_pipeline_tests.artifacts import finished, task_store
from finetune_pipeline_tests.train.setup import SYSTEM, rows
from finetune_pipeline_tests.train.test_history import RISES, history


def test_losses_and_learned_tokens_are_metadata(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    monkeypatch.delenv("FINETUNE_DESK_URL", raising=False)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    view = token_view(tokenize_pairs(rows(4, pairs=True), tokenizer, SYSTEM, frozenset({2})), tokenizer)
    store = task_store(tmp_path, monkeypatch)
    files = {"history.jsonl": history(RISES), "tokens.json": view, "training.html": {}}
    found = _training("parcels", finished(store, "adapter", files))
    assert found["tokens"].value == "http://127.0.0.1:8310/tasks/parcels/reports/adapter?page=tokens.html"
    image = found["losses"].value.partition("base64,")[2].removesuffix(")")
    assert ElementTree.fromstring(base64.b64decode(image)).tag.endswith("svg")  # noqa: S314 (our own SVG)
    assert found["learned_tokens"].value == markdown(view, 3)
    assert _training("parcels", finished(store, "adapter", {"provider.json": {}})) == {}
    plan = _training("parcels", finished(store, "training_plan", {"plan.json": {}, "tokens.json": view}))
    assert plan["plan"].value == "http://127.0.0.1:8310/tasks/parcels/reports/training_plan"
    assert plan["learned_tokens"].value == markdown(view, 3), "before the training, too"


def test_learned_tokens_are_bold_and_texts_are_no_markup(tiny_model: Path) -> None:
    from markdown_it import MarkdownIt

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    hostile = [row.with_completion('**x** <img src=x> [a](http://b) `c` {"d": 1}') for row in rows(1, pairs=True)]
    text = markdown(token_view(tokenize_pairs(hostile, tokenizer, SYSTEM, frozenset({2})), tokenizer), 1)
    html = MarkdownIt("commonmark", {"html": True}).enable("strikethrough").render(text)
    shown = "<strong>**x** &lt;img src=x&gt; [a](http://b) `c` {&quot;d&quot;: 1}&lt;|im_end|&gt;</strong>"
    assert shown in html and "<s>no green&lt;|im_end|&gt;</s>" in html
    assert "<img" not in html and "<a " not in html and "<code" not in html
