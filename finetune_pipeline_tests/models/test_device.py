"""Which precision a training uses on which processor."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finetune_pipeline.models import device


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU decides by itself")
@pytest.mark.parametrize(
    ("flags", "fast"), [("avx512f avx512_bf16", True), ("amx_bf16", True), ("avx512f avx2", False)]
)
def test_auto_is_bf16_where_the_processor_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, fast: bool
) -> None:
    monkeypatch.setattr(device, "CPUINFO", tmp_path / "cpuinfo")
    assert not device.uses_bf16("auto"), "nothing is known"
    (tmp_path / "cpuinfo").write_text(f"flags : {flags}\n", "utf-8")
    assert device.kind() == "cpu"
    assert device.uses_bf16("auto") is fast
    assert device.uses_bf16("bf16") and not device.uses_bf16("fp32")
