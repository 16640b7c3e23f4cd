"""Every family: batched decoding and likelihood equal transformers' own, with prompts longer than a window of 4.

The oracle is the model's own eager attention, one sequence at a time, without any cache or with transformers' cache.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from finetune_pipeline.errors import ModelError
from finetune_pipeline.inference import decoder as decoder_module
from finetune_pipeline.inference.decoder import Decoder, Request
from finetune_pipeline.inference.likelihood import losses
from finetune_pipeline.inference.loading import Loaded
from finetune_pipeline.inference.model_family import max_sequence_tokens, require_supported
from finetune_pipeline.inference.sampling import choose
from finetune_pipeline_tests.train.architectures import FAMILIES, tiny

NEW = 9


def ids(length: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(3, 64), k=length)


PREFIX = ids(11, 99)
PROMPTS = [*(PREFIX + ids(2 + 4 * i, i) for i in range(4)), ids(17, 7), ids(2, 8)]


def model_of(family: str) -> Any:
    """A tiny model whose scores and caps matter: weights six times as large as transformers initializes them."""
    import torch

    model = tiny(family).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim > 1:
                weight.mul_(6.0)
            if "sinks" in name:
                weight.copy_(torch.linspace(-1.0, 2.0, len(weight)))
    model.set_attn_implementation("eager")
    return model


def expected(model: Any, prompt: Sequence[int]) -> tuple[list[int], Any]:
    """The tokens of `generate`, and their logits [NEW, vocabulary]."""
    import torch

    out = model.generate(
        torch.tensor([prompt]),
        max_new_tokens=NEW,
        do_sample=False,
        eos_token_id=-1,
        pad_token_id=0,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return [int(i) for i in out.sequences[0, len(prompt) :]], torch.cat(out.logits)


def decoded(
    model: Any, prefix: Sequence[int], chunk: int | None, monkeypatch: pytest.MonkeyPatch
) -> dict[str, tuple[list[int], Any]]:
    """The same of the batched decoder, by prompt; all prompts together."""
    import torch

    rows: dict[str, list[Any]] = {}

    def recorded(logits: Any, sequences: Any) -> Any:
        for row, sequence in zip(logits, sequences, strict=True):
            rows.setdefault(sequence.request.id, []).append(row.clone())
        return choose(logits, sequences)

    monkeypatch.setattr(decoder_module, "choose", recorded)
    decoder = Decoder(model, {-1}, prefix, max_sequences=4, prefill_tokens=16, chunk_tokens=chunk)
    decoder.add_request([Request(str(i), prompt, NEW) for i, prompt in enumerate(PROMPTS)])
    tokens: dict[str, list[int]] = {}
    while decoder.running or decoder.waiting:
        for token in decoder.step():
            assert token.reason != "error", token.error
            tokens.setdefault(token.id, []).append(token.token)
    return {key: (tokens[key], torch.stack(rows[key])) for key in tokens}


@pytest.mark.parametrize("family", FAMILIES)
def test_decoding_equals_the_familys_own_attention(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    model = model_of(family)
    own = {str(i): expected(model, prompt) for i, prompt in enumerate(PROMPTS)}
    for prefix, chunk in ((PREFIX, None), ([], None), (PREFIX, 3), ([], 3)):
        ours = decoded(model, prefix, chunk, monkeypatch)
        assert {key: tokens for key, (tokens, _) in ours.items()} == {key: tokens for key, (tokens, _) in own.items()}
        for key, (_, logits) in ours.items():
            torch.testing.assert_close(logits, own[key][1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_losses_equal_those_of_the_familys_own_forward(family: str) -> None:
    import torch

    class Words:
        """Texts are token numbers; the messages of a prompt are one such text."""

        chat_template = "{{ messages[0]['content'] }}"
        added_tokens_decoder: ClassVar[dict[int, Any]] = {}

        def get_chat_template(self) -> str:
            return self.chat_template

        def apply_chat_template(self, messages: Any, **settings: Any) -> str:
            return str(messages[0]["content"])

        def __call__(self, text: str, add_special_tokens: bool) -> dict[str, list[int]]:
            return {"input_ids": [int(word) for word in text.split()]}

    def text(numbers: Sequence[int]) -> str:
        return " ".join(map(str, numbers))

    model = model_of(family)
    completions = [ids(5 + i, 50 + i) for i in range(len(PROMPTS))]
    rows = {
        str(i): ([{"role": "user", "content": text(prompt)}], text(completion))
        for i, (prompt, completion) in enumerate(zip(PROMPTS, completions, strict=True))
    }
    shared = {key: rows[key] for key in list(rows)[:4]}  # these begin with PREFIX
    for part in (rows, shared):
        found = losses(Loaded(model, Words(), frozenset({2})), part)
        for key in part:
            prompt, completion = PROMPTS[int(key)], completions[int(key)]
            with torch.no_grad():
                logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
            mean = torch.nn.functional.cross_entropy(logits, torch.tensor(completion))
            assert found[key] == pytest.approx(float(mean), abs=1e-4), (family, key)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("mistral_window", {"sliding_window": None}),
        ("gemma2_window", {"attn_logit_softcapping": None}),
        ("gemma2_window", {"final_logit_softcapping": None}),
        ("gemma3", {"sliding_window": 64}),
        ("granite_attention", {"attention_multiplier": 0.1}),
        ("cohere2", {"sliding_window": 64}),
    ],
)
def test_the_settings_of_the_tiny_models_make_a_difference(
    family: str, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the tests above would pass without them."""
    import torch

    logits = expected(model_of(family), PROMPTS[2])[1]
    kind, config, special = FAMILIES[family]
    monkeypatch.setitem(FAMILIES, "changed", (kind, config, special | settings))
    assert not torch.allclose(logits, expected(model_of("changed"), PROMPTS[2])[1], atol=1e-3)


def test_a_window_does_not_limit_the_length_of_a_sequence() -> None:
    model = tiny("mistral_window", max_position_embeddings=128)
    assert max_sequence_tokens(model.config) == 128


def test_a_model_that_changes_its_rotation_is_used_up_to_its_original_context() -> None:
    from transformers import Phi3Config

    factors = [1.0] * 4
    rope = {"rope_type": "longrope", "short_factor": factors, "long_factor": factors, "rope_theta": 10000.0}
    config = Phi3Config(
        hidden_size=32,
        num_attention_heads=4,
        pad_token_id=0,
        max_position_embeddings=4096,
        original_max_position_embeddings=512,
        rope_parameters=rope,
    )
    assert max_sequence_tokens(config) == 512


def test_other_kinds_of_attention_are_refused_by_name_before_any_compute() -> None:
    from transformers import Gemma3TextConfig, Llama4TextConfig, Qwen3NextConfig

    with pytest.raises(ModelError, match="layers of the kind chunked_attention"):
        require_supported(Llama4TextConfig(num_hidden_layers=4))
    with pytest.raises(ModelError, match="layers of the kind linear_attention"):
        require_supported(Qwen3NextConfig(num_hidden_layers=4))
    with pytest.raises(ModelError, match="attends to later tokens"):
        require_supported(Gemma3TextConfig(num_hidden_layers=2, use_bidirectional_attention=True))
