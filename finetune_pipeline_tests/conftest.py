"""A tiny language model with random weights, for every test that needs one: real files, read by the real libraries.

`tiny_model` is a folder as a base model's is (safetensors, tokenizer, ChatML template): two Llama layers of hidden
size 64 with grouped heads, and a byte-level BPE tokenizer of 384 tokens trained here. Its output
is meaningless, but it can be trained, and every result can be checked exactly. It is written with numpy only, so that
a test that only counts tokens does not import torch.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

os.environ["OMP_NUM_THREADS"] = "1"  # tests run in parallel, and so small a model gains nothing from a second thread

HIDDEN, INNER, LAYERS, HEADS, KV_HEADS, VOCABULARY, CONTEXT = 64, 128, 2, 4, 2, 384, 2048
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TEXTS = (
    'Answer with one JSON object: {"intent": "delivery", "priority": "high", "product": null, "order": "HV-48213"}',
    "system user assistant",
    "where is my parcel, I want my money back, the kettle is broken and nobody answers, please cancel my order",
    "delivery returns refund damaged cancel billing technical account question 0 1 2 3 4 5 6 7 8 9 HV-",
)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the model: config.json, model.safetensors, tokenizer.json, tokenizer_config.json, chat_template.jinja.

    Special tokens: 0 <|endoftext|> (padding), 1 <|im_start|>, 2 <|im_end|> (end of turn). Shared: do not write there.
    """
    from safetensors.numpy import save_file

    folder = tmp_path_factory.mktemp("tiny_model")
    save_file(_weights(np.random.default_rng(7)), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(_config()), "utf-8")
    (folder / "tokenizer.json").write_text(_tokenizer(), "utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(_tokenizer_config()), "utf-8")
    (folder / "chat_template.jinja").write_text(CHATML, "utf-8")
    return folder


def _weights(random: np.random.Generator) -> dict[str, NDArray[np.float32]]:
    """Names and shapes as in Llama; scaled by the fan-in, so that activations keep their scale."""

    def linear(out: int, inner: int) -> NDArray[np.float32]:
        numbers: NDArray[np.float32] = (random.standard_normal((out, inner)) / np.sqrt(inner)).astype(np.float32)
        return numbers

    narrow = HIDDEN // HEADS * KV_HEADS
    shapes = {
        "self_attn.q_proj": (HIDDEN, HIDDEN),
        "self_attn.k_proj": (narrow, HIDDEN),
        "self_attn.v_proj": (narrow, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN),
        "mlp.gate_proj": (INNER, HIDDEN),
        "mlp.up_proj": (INNER, HIDDEN),
        "mlp.down_proj": (HIDDEN, INNER),
    }
    one = np.ones(HIDDEN, np.float32)
    weights = {"model.embed_tokens.weight": linear(VOCABULARY, HIDDEN), "model.norm.weight": one}
    for layer in range(LAYERS):
        name = f"model.layers.{layer}"
        weights |= {f"{name}.{part}.weight": linear(*shape) for part, shape in shapes.items()}
        weights |= {f"{name}.{norm}.weight": one for norm in ("input_layernorm", "post_attention_layernorm")}
    return weights


def _config() -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": INNER,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS,
        "max_position_embeddings": CONTEXT,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        "dtype": "float32",
    }


def _tokenizer() -> str:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        min_frequency=1,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    text: str = tokenizer.to_str()
    return text


def _tokenizer_config() -> dict[str, object]:
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": SPECIAL[1],
        "eos_token": SPECIAL[2],
        "pad_token": SPECIAL[0],
        "model_max_length": CONTEXT,
        "clean_up_tokenization_spaces": False,
    }
