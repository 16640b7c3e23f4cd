"""A base model that cannot be loaded: the hint says how to get its files again."""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from finetune_pipeline.config import Train
from finetune_pipeline.errors import ModelError
from finetune_pipeline.inference.loading import load
from finetune_pipeline.train.method import load_base


def remove(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


@pytest.mark.parametrize("damage", [remove, cut])
@pytest.mark.parametrize(
    ("where", "hint"),
    [
        ("home/models/tiny-1f0c", "delete the folder .*/home/models/tiny-1f0c and run again"),
        ("elsewhere/tiny", "put its files back"),
    ],
)
def test_the_hint_names_a_way_to_get_the_files_again(
    where: str,
    hint: str,
    damage: Callable[[Path], None],
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))
    folder = Path(shutil.copytree(tiny_model, tmp_path / where))
    damage(folder / "model.safetensors")
    for loads in (lambda: load(folder), lambda: load_base(folder, Train())):  # for generation, and for training
        with pytest.raises(ModelError, match=f"the base model in .*/{where} cannot be loaded") as caught:
            loads()
        assert re.match(hint, caught.value.hint)
