"""The tiny model, loaded once for the tests of this package."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune_pipeline.inference.loading import Loaded, load


@pytest.fixture(scope="session")
def loaded(tiny_model: Path) -> Loaded:
    """The tiny model and its tokenizer, in fp32. Its answers do not repeat, and end at different lengths."""
    return load(tiny_model)
