"""What a validation measures: the answers, without being stopped in them, and full weights as they are saved."""

from __future__ import annotations

import shutil
from pathlib import Path

from finetune_pipeline.records import Silent
from finetune_pipeline.train import job
from finetune_pipeline.train.assembly import assemble
from finetune_pipeline.train.checkpoint import TrainingState
from finetune_pipeline.train.validation import scorer
from finetune_pipeline_tests.train.setup import RULES, Setup, StopAfter, rows
from finetune_pipeline_tests.train.test_distributed import training


def test_a_cancel_does_not_stop_the_answers_to_validation_rows(tiny_model: Path, tmp_path: Path) -> None:
    """It is noticed before the next step, where a checkpoint is written."""
    setup, spec = Setup(tiny_model), training(tiny_model, tmp_path, 1, False, RULES)
    score = scorer(setup.model, setup.base, rows(4), spec, StopAfter(0))
    assert score is not None and 0 <= score() <= 1


def test_full_weights_are_judged_as_they_are_saved(tiny_model: Path, tmp_path: Path) -> None:
    """In the base model's bf16, which rounds a part of every step away."""
    import torch
    from transformers import AutoModelForCausalLM

    base = Path(shutil.copytree(tiny_model, tmp_path / "base"))
    AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.bfloat16).save_pretrained(base)
    spec = training(base, tmp_path, 2, False, RULES.model_copy(update={"method": "full", "learning_rate": 1e-4}))
    setup, state = assemble(spec), TrainingState()
    spec.checkpoints.mkdir(parents=True)
    setup.measure_base()
    job._compute(spec, Silent(), setup, state, lambda metrics, step: None)
    assert all(torch.equal(weight, weight.bfloat16().float()) for weight in setup.trainable.weights.values())
    saved = setup.loop(tmp_path, Silent(), lambda metrics, step: None).validate(setup.rows["validation"], 4096)
    kept = job._kept(state, setup.rules)
    assert kept["step"] > 0 and kept["validation_loss"] == saved["validation_loss"]
