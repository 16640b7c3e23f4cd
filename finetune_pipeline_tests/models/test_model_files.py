"""The files of a model folder."""

from __future__ import annotations

from pathlib import Path

from finetune_pipeline.models.model_files import token_counter


def test_the_token_counter_equals_the_tokenizer_of_transformers(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    texts = ["where is my parcel?", "", "ünïcödé 48213"]
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    expected = [len(ids) for ids in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    assert token_counter(tiny_model)(texts) == expected
