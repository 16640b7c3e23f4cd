"""The job that turns a GGUF file into a folder of safetensors, once per machine.

A process of its own, since it needs torch and, for a moment, the weights twice. The weights are written as bf16: the
format such models were trained in and are served in on GPUs, so that a processor that computes in fp32 and a GPU that
computes in bf16 start from the same numbers. What bf16 rounds off (2^-9) is far below the step of a quantization.

    python -m finetune_pipeline.models.gguf job.json     # {"gguf": "/…/SmolLM2.Q4_1.gguf", "folder": "/…/scratch"}
"""

from __future__ import annotations

import shutil
from functools import cache
from pathlib import Path
from typing import Any

from finetune_pipeline.backends import worker
from finetune_pipeline.errors import ModelError
from finetune_pipeline.models.model_files import writing
from finetune_pipeline.records import Reporter


def run(spec: dict[str, Any], report: Reporter) -> dict[str, Any]:
    """Write model and tokenizer of the file `spec["gguf"]` into `spec["folder"]`. ModelError: it cannot be read."""
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source, folder = Path(spec["gguf"]), Path(spec["folder"])
    report.log(f"reading {source.name} (once; kept as safetensors)")
    _spare(gguf)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
        )
        tokenizer = AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name)
    except (OSError, ValueError, KeyError, ImportError, RuntimeError) as error:
        raise ModelError(
            f"{source} cannot be read as a GGUF model: {error}",
            "check that the file is complete and of an architecture that transformers knows, or use safetensors",
        ) from error
    broken = [name for name, weight in model.named_parameters() if not bool(torch.isfinite(weight).all())]
    if broken:
        raise ModelError(f"{source} holds numbers that are not finite, in {broken[0]}", "download the file again")
    report.alive()
    with writing(folder):
        shutil.rmtree(folder)  # here, where no other job computes: that of a killed run may have written into it
        folder.mkdir()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return {"parameters": model.num_parameters()}


def _spare(gguf: Any) -> None:
    """Keep transformers from doing the same work again: it parses the file three times, builds the table of tensor
    names once for every layer, and reads millions of numbers through numpy's slow memmap. 45 s to 20 s on two cores."""
    import numpy as np

    class Reader(gguf.GGUFReader):  # type: ignore[misc]
        @property
        def data(self) -> Any:
            return self._plain

        @data.setter
        def data(self, mapped: Any) -> None:
            self._plain = mapped.view(np.ndarray)

    gguf.GGUFReader = cache(Reader)
    gguf.get_tensor_name_map = cache(gguf.get_tensor_name_map)


if __name__ == "__main__":
    worker.main(run)
