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


def test_answers_are_computed_in_fp32_on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(device, "kind", lambda: "cpu")
    monkeypatch.setattr(device, "fast_bf16", lambda: True)
    assert device.inference_dtype("auto") == torch.float32
    assert device.inference_dtype("bf16") == torch.bfloat16
    monkeypatch.setattr(device, "kind", lambda: "cuda")
    assert device.inference_dtype("auto") == torch.bfloat16
    assert device.inference_dtype("fp32") == torch.float32
    monkeypatch.setattr(device, "fast_bf16", lambda: False)  # a GPU without bf16
    assert device.inference_dtype("auto") == torch.float32
    assert [device.dtype_name(dtype) for dtype in (torch.float32, torch.bfloat16)] == ["fp32", "bf16"]


def test_running_out_of_memory_is_recognized() -> None:
    with pytest.raises(RuntimeError) as refused:
        torch.empty(1 << 50)
    assert device.out_of_memory(refused.value)
    assert device.out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert not device.out_of_memory(RuntimeError("shapes do not match"))
    assert not device.out_of_memory(ValueError("out of memory"))


def test_memory_is_measured_in_mb() -> None:
    assert 0 < device.free_mb() <= device.total_mb()
    with device.PeakDeviceMemory() as peak:
        held = torch.ones(60_000_000, device=device.kind())
        device.synchronize()
        import time

        time.sleep(0.6)  # two samples
    assert held.nbytes / 1e6 <= peak.mb <= device.total_mb()
