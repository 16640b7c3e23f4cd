from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.evaluate import general_ability
from finetune_pipeline.evaluate.memorization import memorized
from finetune_pipeline.inference.generate import encode
from finetune_pipeline.inference.likelihood import fitting, losses
from finetune_pipeline.inference.loading import Loaded
from finetune_pipeline.records import Silent


def test_losses_equal_those_of_a_plain_forward_pass(loaded: Loaded) -> None:
    import torch

    rows = general_ability.conversations(general_ability.prompts()[:12])
    found = losses(loaded, rows)
    for key, (messages, answer) in rows.items():
        prompt = encode(loaded.tokenizer, messages)
        target = loaded.tokenizer(answer, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = loaded.model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
        plain = torch.nn.functional.cross_entropy(logits, torch.tensor(target))
        assert found[key] == pytest.approx(float(plain), abs=1e-5)


def test_losses_in_bf16_have_the_same_mean(loaded: Loaded) -> None:
    rows = general_ability.conversations(general_ability.prompts()[:40])
    exact, fast = losses(loaded, rows), losses(loaded, rows, bf16=True)
    assert exact != fast
    assert sum(fast.values()) == pytest.approx(sum(exact.values()), rel=2e-3)


def test_texts_that_the_model_cannot_read_as_a_whole_are_left_out_and_told(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Heard(Silent):
        said = ""

        def log(self, text: str) -> None:
            self.said += text

    rows, heard = general_ability.conversations(general_ability.prompts()), Heard()
    assert fitting(loaded, rows, "general texts", heard) == rows and not heard.said
    prompts = {key: len(encode(loaded.tokenizer, messages)) for key, (messages, _) in rows.items()}
    answers = {key: len(loaded.tokenizer(answer)["input_ids"]) for key, (_, answer) in rows.items()}
    lengths = {key: prompts[key] + answers[key] for key in rows}
    limit = sorted(lengths.values())[20]
    monkeypatch.setattr(loaded.model.config, "max_position_embeddings", limit)
    kept = fitting(loaded, rows, "general texts", heard)
    assert kept.keys() == {key for key, length in lengths.items() if length <= limit}
    assert heard.said.startswith(f"{len(rows) - len(kept)} of {len(rows)} general texts are left out")
    assert losses(loaded, kept).keys() == kept.keys()
    monkeypatch.setattr(loaded.model.config, "max_position_embeddings", 1)
    assert fitting(loaded, rows, "general texts", heard) == {}


def test_general_questions_are_many_and_different() -> None:
    rows = general_ability.prompts()
    assert len(rows) >= 200
    assert len({row["id"] for row in rows}) == len({row["prompt"] for row in rows}) == len(rows)
    assert len({row["kind"] for row in rows}) >= 10
    assert all(row["completion"].strip() for row in rows)


def test_the_rise_is_relative_to_the_base() -> None:
    rows = general_ability.compared({"a": 2.0, "b": 2.0}, {"a": 2.0, "b": 3.0})
    assert general_ability.summary(rows) == {"texts": 2, "base": 2.0, "tuned": 2.5, "rise": 0.25}


def test_memorization_of_rows_that_cannot_be_told_apart() -> None:
    found = memorized([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, 3.0, 4.0])
    low, high = interval(found)
    assert found["auc"] == 0.5
    assert low < 0.5 < high


def test_memorization_of_rows_that_are_known() -> None:
    found = memorized([0.1 + i / 100 for i in range(30)], [1.0 + i / 100 for i in range(30)])
    assert (found["auc"], interval(found)[0]) == (1.0, 1.0)
    assert memorized([1.0] * 5 + [3.0] * 5, [2.0] * 10)["auc"] == 0.5


def interval(found: Mapping[str, Any]) -> tuple[float, float]:
    low, high = found["interval"]
    return low, high


def test_an_adapter_that_fits_in_part_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model
    from safetensors.torch import load_file, save_file
    from transformers import AutoModelForCausalLM

    from finetune_pipeline.errors import StorageError
    from finetune_pipeline.inference.loading import load

    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model), config).save_pretrained(tmp_path)
    assert load(tiny_model, tmp_path).model is not None
    weights = load_file(tmp_path / "adapter_model.safetensors")
    weights.pop(next(iter(weights)))
    save_file(weights, tmp_path / "adapter_model.safetensors")
    with pytest.raises(StorageError, match="only in part"):
        load(tiny_model, tmp_path)
