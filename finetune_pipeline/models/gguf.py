"""The job that dequantizes a GGUF file into a folder of safetensors, once per machine.

    python -m finetune_pipeline.models.gguf job.json     # {"gguf": "/…/SmolLM2.Q4_1.gguf", "folder": "/…/scratch"}

It is a separate process, because it imports torch and briefly holds the weights twice. Weights are written as bf16: the
format such models were trained in and are served in on GPUs, so a CPU that computes in fp32 and a GPU that computes in
bf16 start from the same numbers. The rounding error of bf16 (2^-9) is far below the step of a quantization.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from finetune_pipeline.backends import worker
from finetune_pipeline.backends.job_data import JobData
from finetune_pipeline.errors import ModelError
from finetune_pipeline.models.finite_weights import require_finite
from finetune_pipeline.models.model_files import writing
from finetune_pipeline.records import Reporter


@dataclass(frozen=True)
class ConversionSpec(JobData):
    """`gguf`: the file to read; `folder`: the folder to write, whose former content is deleted."""

    gguf: Path
    folder: Path


@dataclass(frozen=True)
class ConversionResult(JobData):
    """`parameters`: the number of parameters of the model."""

    parameters: int


def run(spec: ConversionSpec, report: Reporter) -> ConversionResult:
    """Write model and tokenizer. ModelError when the file cannot be read or is damaged."""
    import gguf
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    source, folder = spec.gguf, spec.folder
    report.log(f"reading {source.name} (once; kept as safetensors)")
    _cache_parsing(gguf)
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
    require_finite(model, source)
    report.alive()
    with writing(folder):
        shutil.rmtree(folder)  # only now, holding the compute lock: the job of a killed run may have written here
        folder.mkdir()
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return ConversionResult(model.num_parameters())


def _cache_parsing(gguf: Any) -> None:
    """Cache what transformers computes repeatedly: it parses the file three times, builds the table of tensor names
    once per layer, and reads millions of numbers through numpy's slow memmap. From 45 s to 20 s on two cores."""
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
    worker.main(run, ConversionSpec)
