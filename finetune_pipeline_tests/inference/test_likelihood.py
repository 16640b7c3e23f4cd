"""The loss of given completions equals that of a forward pass of each row; texts beyond the limit are skipped."""

from __future__ import annotations

import pytest

from finetune_pipeline.evaluate import general_ability
from finetune_pipeline.inference.generate import encode
from finetune_pipeline.inference.likelihood import fitting, losses
from finetune_pipeline.inference.loading import Loaded
from finetune_pipeline.records import Silent


def test_losses_equal_those_of_a_forward_pass_of_each_row(loaded: Loaded) -> None:
    import torch

    rows = general_ability.conversations(general_ability.prompts()[:12])
    found = losses(loaded, rows)
    for key, (messages, completion) in rows.items():
        prompt = encode(loaded.tokenizer, messages)
        target = loaded.tokenizer(completion, add_special_tokens=False)["input_ids"]
        with torch.no_grad():
            logits = loaded.model(torch.tensor([prompt + target])).logits[0, len(prompt) - 1 : -1]
        expected = torch.nn.functional.cross_entropy(logits, torch.tensor(target))
        assert found[key] == pytest.approx(float(expected), abs=1e-5)


def test_losses_in_bf16_have_the_same_mean(loaded: Loaded) -> None:
    rows = general_ability.conversations(general_ability.prompts()[:40])
    exact, fast = losses(loaded, rows), losses(loaded, rows, bf16=True)
    assert exact != fast
    assert sum(fast.values()) == pytest.approx(sum(exact.values()), rel=2e-3)


def test_texts_longer_than_the_models_limit_are_skipped_and_logged(
    loaded: Loaded, monkeypatch: pytest.MonkeyPatch
) -> None:
    class LogRecorder(Silent):
        text = ""

        def log(self, text: str) -> None:
            self.text += text

    rows, recorder = general_ability.conversations(general_ability.prompts()), LogRecorder()
    assert fitting(loaded, rows, "general texts", recorder) == rows and not recorder.text
    prompts = {key: len(encode(loaded.tokenizer, messages)) for key, (messages, _) in rows.items()}
    completions = {key: len(loaded.tokenizer(answer)["input_ids"]) for key, (_, answer) in rows.items()}
    lengths = {key: prompts[key] + completions[key] for key in rows}
    limit = sorted(lengths.values())[20]
    monkeypatch.setattr(loaded.model.config, "max_position_embeddings", limit)
    kept = fitting(loaded, rows, "general texts", recorder)
    assert kept.keys() == {key for key, length in lengths.items() if length <= limit}
    assert recorder.text.startswith(f"{len(rows) - len(kept)} of {len(rows)} general texts are skipped")
    assert losses(loaded, kept).keys() == kept.keys()
    monkeypatch.setattr(loaded.model.config, "max_position_embeddings", 1)
    assert fitting(loaded, rows, "general texts", recorder) == {}
