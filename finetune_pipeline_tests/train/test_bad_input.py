"""What a stranger may put into a training: each is an error with a hint, before compute is spent where possible."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.backends import local
from finetune_pipeline.config import AnswerFormat, Lora, Train, task_from
from finetune_pipeline.errors import FinetuneError, GateRefused, JobCanceled, ModelError, TrainingFailed
from finetune_pipeline.evaluate.assets import _require_same_base
from finetune_pipeline.records import Silent, write_jsonl
from finetune_pipeline.train import assembly, checkpoint, declared, job
from finetune_pipeline.train.objective import objective_of, require_rows
from finetune_pipeline.train.spec import TrainingResult, TrainingSpec
from finetune_pipeline_tests.artifacts import finished, stage_context, task, task_store
from finetune_pipeline_tests.train.setup import RULES, SYSTEM, LogRecorder, Setup, StopAfter, rows

Change = Callable[[Path], object]


def spec_in(folder: Path, tiny_model: Path, change: Change = lambda base: None, rules: Train = RULES) -> TrainingSpec:
    """A training of eight rows with a copy of the tiny model, which `change` damages."""
    base = Path(shutil.copytree(tiny_model, folder / "base"))
    change(base)
    (folder / "out").mkdir()
    write_jsonl(folder / "rows.jsonl", rows(8))
    return TrainingSpec(
        task="colors",
        base=base,
        base_id="tiny",
        train=folder / "rows.jsonl",
        validation=folder / "rows.jsonl",
        system=SYSTEM,
        answer=AnswerFormat(),
        rules=rules,
        checkpoints=folder / "steps",
        out=folder / "out",
        params={},
        dataset_name="colors",
        dataset_digest="d1",
        base_sha256="ab" * 32,
    )


def setting(name: str, **values: Any) -> Change:
    """Change a JSON file of the model; None removes a key."""

    def change(base: Path) -> None:
        settings = {**json.loads((base / name).read_text("utf-8")), **values}
        (base / name).write_text(json.dumps({k: v for k, v in settings.items() if v is not None}), "utf-8")

    return change


def cut(base: Path) -> None:
    file = base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:5000])


def not_finite(base: Path) -> None:
    from safetensors.numpy import load_file, save_file

    weights = load_file(base / "model.safetensors")
    weights["model.layers.1.mlp.up_proj.weight"][3, 4] = float("nan")
    save_file(weights, base / "model.safetensors", metadata={"format": "pt"})


def without_end(base: Path) -> None:
    setting("tokenizer_config.json", eos_token=None)(base)
    setting("config.json", eos_token_id=None)(base)


BAD_BASES: dict[str, tuple[Change, str, str]] = {
    "no template": (lambda base: (base / "chat_template.jinja").unlink(), "has no chat template", "instruct model"),
    "damaged template": (
        lambda base: (base / "chat_template.jinja").write_text("{% for m in messages %}\n{{ m.content }", "utf-8"),
        "chat template is damaged: line 2: unexpected '}'",
        "chat_template.jinja",
    ),
    "cut weights": (cut, r"model\.safetensors is damaged", "put its files back"),
    "no weights": (lambda base: (base / "model.safetensors").unlink(), "no weights at all", "put its files back"),
    "pickled": (
        lambda base: (base / "model.safetensors").rename(base / "pytorch_model.bin"),
        r"only pytorch_model\.bin: pickle, which runs code",
        "convert the weights",
    ),
    "own code": (
        setting("config.json", auto_map={"AutoModelForCausalLM": "own.Model"}, model_type="own"),
        r"code of its own \(auto_map in config\.json\), which is never executed",
        "part of transformers",
    ),
    "unknown": (setting("config.json", model_type="martian"), "type 'martian', which transformers", "Llama, Mistral"),
    "not finite": (not_finite, r"not finite, in model\.layers\.1\.mlp\.up_proj\.weight", "get the model's files again"),
    "no end": (
        without_end,
        "names an end-of-turn token",
        "add `eos_token`",
    ),
}


@pytest.mark.parametrize("case", BAD_BASES)
def test_a_base_model_that_cannot_be_trained_is_named_with_a_hint(tiny_model: Path, tmp_path: Path, case: str) -> None:
    change, message, hint = BAD_BASES[case]
    with pytest.raises(ModelError, match=message) as refused:
        assembly.assemble(spec_in(tmp_path, tiny_model, change))
    assert hint in refused.value.hint and "\n" not in refused.value.message


def test_a_tokenizer_without_pad_token_trains(tiny_model: Path, tmp_path: Path) -> None:
    """Rows are packed, and padded positions masked, so none is needed."""

    def change(base: Path) -> None:
        setting("tokenizer_config.json", pad_token=None)(base)
        setting("config.json", pad_token_id=None)(base)

    setup = assembly.assemble(spec_in(tmp_path, tiny_model, change))
    assert setup.base.tokenizer.pad_token is None and setup.audit.passed


@pytest.mark.parametrize(
    ("changed", "message", "hint"),
    [
        ({"objective": "dpo"}, "none of the 8 training rows has a rejected completion", "preference pairs"),
        ({"lora": Lora(target_modules=("q_proj", "c_attn"))}, "names c_attn, which the base model does not", "v_proj"),
    ],
)
def test_settings_that_do_not_fit_rows_or_model_are_named(
    tiny_model: Path, tmp_path: Path, changed: dict[str, Any], message: str, hint: str
) -> None:
    with pytest.raises(FinetuneError, match=message) as refused:
        assembly.assemble(spec_in(tmp_path, tiny_model, rules=RULES.model_copy(update=changed)))
    assert hint in refused.value.hint


def test_rows_that_do_not_fit_the_objective_are_found_before_the_model_is_loaded(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(assembly, "load_base", None)  # not called
    with pytest.raises(TrainingFailed, match="rejected completion"):
        assembly.assemble(spec_in(tmp_path, tiny_model, rules=RULES.model_copy(update={"objective": "orpo"})))
    with pytest.raises(TrainingFailed, match="there are no rows"):
        require_rows([], [], objective_of(RULES))


@pytest.mark.parametrize("changed", [{"method": "qlora"}, {"optimizer": "adamw_8bit"}])
def test_a_missing_bitsandbytes_is_named(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, Any]
) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None if name == "bitsandbytes" else real(name))
    for module in ("optimizer", "declared"):
        monkeypatch.setattr(f"finetune_pipeline.train.{module}.find_spec", lambda name: None)
    with pytest.raises(ModelError, match="needs the package bitsandbytes") as refused:
        assembly.assemble(spec_in(tmp_path, tiny_model, rules=RULES.model_copy(update=changed)))
    assert "pip install" in refused.value.hint
    (problem,) = declared.problems(task(train=changed))
    assert f"train.{next(iter(changed))}: " in problem and "pip install" in problem


def test_validate_names_modules_that_the_model_does_not_have(tiny_model: Path, tmp_path: Path) -> None:
    base = {"path": str(tiny_model), "license": "mit"}
    plain = {"name": "t", "sources": [{"path": "raw/a.csv"}], "base": base}
    lora = {"target_modules": ["q_proj", "c_attn"]}
    (problem,) = declared.problems(task_from({**plain, "train": {"lora": lora}}, "the test's"))
    assert "no linear layer c_attn (it has down_proj, gate_proj, k_proj, o_proj" in problem
    assert declared.problems(task_from(plain, "the test's")) == []
    hub = {"hub": "a/b", "revision": "a" * 40, "license": "mit"}
    assert declared.problems(task_from({**plain, "base": hub, "train": {"lora": lora}}, "the test's")) == []


# checkpoints -------------------------------------------------------------------------------------------------


def checkpointed(tiny_model: Path, folder: Path, spec: TrainingSpec) -> Setup:
    """Two checkpoints of a training as `spec` describes it."""
    setup = Setup(tiny_model)
    state = checkpoint.TrainingState(identity=spec.identity)
    with pytest.raises(JobCanceled):
        setup.loop(folder, StopAfter(2)).run(setup.rows, setup.rows[:3], state, setup.optimizer)
    assert len(list(folder.glob("step-*"))) == 2
    return setup


def test_a_checkpoint_of_another_declaration_is_refused_before_the_model_is_loaded(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = spec_in(tmp_path, tiny_model)
    checkpointed(tiny_model, spec.checkpoints, spec)
    monkeypatch.setattr(assembly, "load_base", None)  # not called
    faster = RULES.model_copy(update={"learning_rate": 0.02})
    for changed, message in (
        (replace(spec, rules=faster), "train.learning_rate is 0.01, and here it is 0.02"),
        (replace(spec, dataset_digest="d2"), "data is 'd1', and here it is 'd2'"),
        (replace(spec, base_sha256="cd" * 32), "its base weights is"),
        (replace(spec, system="Say no."), "its prompt.system is"),
    ):  # fmt: skip
        with pytest.raises(TrainingFailed, match=message) as refused:
            job.run(changed, Silent())
        assert f"delete {spec.checkpoints}" in refused.value.hint


def test_settings_that_change_no_weight_leave_a_checkpoint_valid(tiny_model: Path, tmp_path: Path) -> None:
    spec = spec_in(tmp_path, tiny_model)
    setup = checkpointed(tiny_model, spec.checkpoints, spec)
    other = replace(spec, rules=RULES.model_copy(update={"threads": 7, "checkpoint_seconds": 900.0}))
    state = checkpoint.load(spec.checkpoints, setup.weights, setup.optimizer, Silent(), other.identity)
    assert (state.step, state.identity) == (2, spec.identity)


def test_a_checkpoint_of_before_identities_is_resumed(tiny_model: Path, tmp_path: Path) -> None:
    spec = spec_in(tmp_path, tiny_model)
    setup = checkpointed(tiny_model, spec.checkpoints, spec)
    for file in spec.checkpoints.glob("*/state.json"):
        plain = json.loads(file.read_text("utf-8"))
        plain.pop("identity")
        file.write_text(json.dumps(plain), "utf-8")
    assert checkpoint.load(spec.checkpoints, setup.weights, setup.optimizer, Silent(), spec.identity).step == 2


@pytest.mark.parametrize("file", ["tensors.safetensors", "state.json"])
def test_checkpoints_that_are_cut_in_half_are_named_and_the_training_begins_anew(
    tiny_model: Path, tmp_path: Path, file: str
) -> None:
    spec, report = spec_in(tmp_path, tiny_model), LogRecorder()
    setup = checkpointed(tiny_model, spec.checkpoints, spec)
    newest, older = sorted(spec.checkpoints.glob(f"*/{file}"), reverse=True)
    newest.write_bytes(newest.read_bytes()[: newest.stat().st_size // 2])
    assert checkpoint.load(spec.checkpoints, setup.weights, setup.optimizer, report, spec.identity).step < 2
    assert "is damaged" in report.lines[0] and "using the previous one" in report.lines[0]
    older.write_bytes(older.read_bytes()[: older.stat().st_size // 2])
    fresh = Setup(tiny_model)
    state = checkpoint.load(spec.checkpoints, fresh.weights, fresh.optimizer, report, spec.identity)
    assert (state.step, state.identity) == (0, spec.identity)


# the adapter of another base, and the real process --------------------------------------------------------------


def test_an_adapter_of_another_base_is_not_evaluated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One of the same shapes would load."""
    store = task_store(tmp_path, monkeypatch)
    base, adapter = finished(store, "base_model", {"a.json": {}}), finished(store, "adapter", {"b.json": {}})
    inputs = {"base_model": base, "adapter": adapter}
    _require_same_base(stage_context(task(), store, tmp_path, **inputs))
    facts = {**adapter.manifest, "inputs": {"base_model": "another"}}
    with pytest.raises(GateRefused, match="trained on the base model another") as refused:
        _require_same_base(
            stage_context(task(), store, tmp_path, base_model=base, adapter=replace(adapter, manifest=facts))
        )
    assert "materialize adapter again" in refused.value.hint


def test_the_error_of_a_real_training_process_reaches_the_caller(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FINETUNE_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    spec = spec_in(tmp_path, tiny_model, setting("config.json", max_position_embeddings=60))
    with pytest.raises(TrainingFailed, match=r"the model's context of 60 tokens: 14 rows: row1, row2") as refused:
        local.run("finetune_pipeline.train.job", spec, TrainingResult, tmp_path / "job", Silent())
    assert "clean.max_tokens" in refused.value.hint and "--show-tokens" in refused.value.hint
    assert not (tmp_path / "home" / "tracking").exists(), "no run of MLflow before the audit passed"
