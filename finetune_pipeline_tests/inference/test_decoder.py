"""The decoder gives the answers of transformers' `generate`, however sequences are batched, chunked or canceled."""

from __future__ import annotations

import random
from collections.abc import Collection, Sequence
from pathlib import Path

import pytest

from finetune_pipeline.errors import DataError, ModelError
from finetune_pipeline.inference.decoder import Decoder, Request, Token
from finetune_pipeline.inference.loading import Loaded, base_only, load

END = 2


def prompt(length: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(10, 380), k=length)


PREFIX = prompt(20, 99)
PROMPTS = [(PREFIX if i % 4 else []) + prompt(2 + 3 * i, i) for i in range(12)]


def run(decoder: Decoder, late: Sequence[Request] = (), after: int = 3) -> dict[str, list[Token]]:
    """Tokens by request id, of all steps; the requests `late` are added after some steps."""
    received: dict[str, list[Token]] = {}
    steps = 0
    while decoder.running or decoder.waiting or late:
        if steps == after:
            decoder.add_request(late)
            late = ()
        for token in decoder.step():
            received.setdefault(token.id, []).append(token)
        steps += 1
    return received


def ids(tokens: Sequence[Token]) -> list[int]:
    return [token.token for token in tokens]


def generated(loaded: Loaded, prompt_ids: list[int], new: int, end: int = END) -> list[int]:
    """The token ids of transformers' `generate`."""
    import torch

    out = loaded.model.generate(
        torch.tensor([prompt_ids]), max_new_tokens=new, do_sample=False, eos_token_id=end, pad_token_id=0
    )
    return [int(i) for i in out[0, len(prompt_ids) :]]


@pytest.mark.parametrize("prefill_tokens", [16, 1024])
def test_greedy_answers_equal_generate_with_requests_added_later(loaded: Loaded, prefill_tokens: int) -> None:
    requests = [Request(str(i), ids, 25) for i, ids in enumerate(PROMPTS)]
    decoder = Decoder(loaded.model, {END}, PREFIX, max_sequences=5, prefill_tokens=prefill_tokens)
    decoder.add_request(requests[:4])
    received = run(decoder, requests[4:])
    assert {key: ids(tokens) for key, tokens in received.items()} == {
        str(i): generated(loaded, ids, 25) for i, ids in enumerate(PROMPTS)
    }


def test_answers_with_an_adapter_equal_generate(tiny_model: Path, tmp_path: Path, loaded: Loaded) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), config)
    generator = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data = torch.randn(weight.shape, generator=generator)
    model.save_pretrained(tmp_path)
    tuned = load(tiny_model, tmp_path)
    decoder = Decoder(tuned.model, {END}, PREFIX)
    decoder.add_request([Request(str(i), PROMPTS[i], 12) for i in range(4)])
    received = {key: ids(tokens) for key, tokens in run(decoder).items()}
    assert received == {str(i): generated(tuned, PROMPTS[i], 12) for i in range(4)}
    with base_only(tuned):
        base = Decoder(tuned.model, {END}, PREFIX)
        base.add_request([Request("0", PROMPTS[0], 12)])
        assert ids(run(base)["0"]) == generated(loaded, PROMPTS[0], 12) != received["0"]


def test_an_end_of_turn_token_finishes_a_sequence(loaded: Loaded) -> None:
    end = generated(loaded, PROMPTS[1], 25, end=-1)[4]
    decoder = Decoder(loaded.model, {end}, PREFIX)
    decoder.add_request([Request("a", PROMPTS[1], 25), Request("b", PROMPTS[2], 9)])
    received = run(decoder)
    assert received["a"][-1].reason == "eos"
    assert ids(received["a"]) == generated(loaded, PROMPTS[1], 25, end)
    assert len(received["a"]) <= 5
    assert all(not token.finished for token in received["a"][:-1])
    assert decoder.running == decoder.waiting == 0


def test_the_last_sequence_moves_into_the_slot_of_a_finished_one(loaded: Loaded) -> None:
    lengths = [2, 30, 4, 30, 1, 30]
    decoder = Decoder(loaded.model, {-1}, PREFIX, max_sequences=4)
    decoder.add_request([Request(str(i), PROMPTS[i], length) for i, length in enumerate(lengths)])
    received = run(decoder)
    for i, length in enumerate(lengths):
        assert ids(received[str(i)]) == generated(loaded, PROMPTS[i], length, end=-1)
        assert received[str(i)][-1].reason == "length"


def test_a_stop_rule_finishes_a_sequence(loaded: Loaded) -> None:
    decoder = Decoder(loaded.model, {-1})
    decoder.add_request([Request("a", PROMPTS[0], 25, stop=lambda answer: len(answer) == 3)])
    tokens = run(decoder)["a"]
    assert [token.reason for token in tokens] == [None, None, "stop"]


def test_canceled_requests_are_removed_without_effect_on_others(loaded: Loaded) -> None:
    decoder = Decoder(loaded.model, {-1}, max_sequences=2)
    decoder.add_request([Request(str(i), PROMPTS[i], 12) for i in range(3)])
    decoder.step()
    decoder.cancel({"0", "2", "unknown"})
    assert (decoder.running, decoder.waiting) == (1, 0)
    received = run(decoder)
    assert ids(received["1"]) == generated(loaded, PROMPTS[1], 12, end=-1)[1:]
    assert set(received) == {"1"}


def test_sampling_depends_on_the_seed_and_not_on_the_batch(loaded: Loaded) -> None:
    request = Request("s", PROMPTS[3], 20, temperature=1.0, top_p=0.9, seed=4)
    alone, batched = Decoder(loaded.model, {-1}), Decoder(loaded.model, {-1})
    alone.add_request([request])
    batched.add_request([Request("n", PROMPTS[5], 20, temperature=1.0, seed=8), request, Request("g", PROMPTS[6], 20)])
    first = ids(run(alone)["s"])
    assert first == ids(run(batched)["s"])
    other = Decoder(loaded.model, {-1})
    other.add_request([Request("s", PROMPTS[3], 20, temperature=1.0, top_p=0.9, seed=5)])
    assert first != ids(run(other)["s"])


def test_a_tiny_top_p_is_greedy(loaded: Loaded) -> None:
    decoder = Decoder(loaded.model, {-1})
    decoder.add_request([Request("s", PROMPTS[3], 10, temperature=1.0, top_p=1e-6, seed=4)])
    assert ids(run(decoder)["s"]) == generated(loaded, PROMPTS[3], 10, end=-1)


def test_only_allowed_tokens_are_generated(loaded: Loaded) -> None:
    def allowed(answer: Sequence[int]) -> Collection[int] | None:
        return {40 + len(answer), 60} if len(answer) < 3 else None

    decoder = Decoder(loaded.model, {-1})
    decoder.add_request([Request("c", PROMPTS[0], 5, allowed=allowed)])
    tokens = ids(run(decoder)["c"])
    assert all(token in {40 + i, 60} for i, token in enumerate(tokens[:3]))


def test_the_cache_stays_within_its_limit(loaded: Loaded) -> None:
    decoder = Decoder(loaded.model, {-1}, max_sequences=8, max_cached_tokens=256)
    decoder.add_request([Request(str(i), prompt(30 if i < 6 else 150, i), 20) for i in range(8)])
    largest = 0
    while decoder.running or decoder.waiting:
        decoder.step()
        largest = max(largest, decoder._cache.slots * decoder._cache.capacity)
    assert 0 < largest <= 256


def test_a_request_that_can_never_fit_is_refused_with_its_id(loaded: Loaded) -> None:
    decoder = Decoder(loaded.model, {END})
    with pytest.raises(DataError, match="request long: 2040 prompt tokens and 20 for the answer"):
        decoder.add_request([Request("fine", PROMPTS[0], 5), Request("long", prompt(2040, 1), 20)])
    assert decoder.waiting == 0
    with pytest.raises(DataError, match="request empty"):
        decoder.add_request([Request("empty", [], 5)])


def test_the_models_attention_is_restored_after_a_step(loaded: Loaded) -> None:
    before = loaded.model.config._attn_implementation
    decoder = Decoder(loaded.model, {END})
    decoder.add_request([Request("a", PROMPTS[0], 2)])
    run(decoder)
    assert loaded.model.config._attn_implementation == before


def test_a_model_with_recurrent_layers_is_refused() -> None:
    from transformers import RwkvConfig, RwkvForCausalLM

    model = RwkvForCausalLM(RwkvConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, attention_hidden_size=32))
    decoder = Decoder(model.eval(), {0})
    decoder.add_request([Request("a", [1, 2, 3], 2)])
    with pytest.raises((ModelError, TypeError)):
        decoder.step()


def test_an_error_in_one_sequence_does_not_affect_the_others(loaded: Loaded) -> None:
    def dead_end(answer: Sequence[int]) -> Collection[int] | None:
        return [] if len(answer) == 2 else None

    def broken(answer: Sequence[int]) -> bool:
        raise ValueError("no such thing")

    decoder = Decoder(loaded.model, {END}, PREFIX)
    decoder.add_request([Request("good", PROMPTS[1], 8), Request("dead", PROMPTS[2], 8, allowed=dead_end)])
    decoder.add_request([Request("stop", PROMPTS[3], 8, stop=broken)])
    received = run(decoder)
    assert ids(received["good"]) == generated(loaded, PROMPTS[1], 8)
    dead, stopped = received["dead"], received["stop"]
    assert (len(dead), dead[-1].reason) == (3, "error") and "no token" in dead[-1].error
    assert (len(stopped), stopped[-1].reason) == (1, "error") and "no such thing" in stopped[-1].error


@pytest.mark.parametrize(("temperature", "top_p"), [(1e-38, 1.0), (1e-320, 1.0), (1.0, 1e-300), (1e-38, 1e-300)])
def test_extreme_sampling_settings_are_greedy(loaded: Loaded, temperature: float, top_p: float) -> None:
    decoder = Decoder(loaded.model, {END}, PREFIX)
    decoder.add_request([Request("a", PROMPTS[1], 8, temperature=temperature, top_p=top_p)])
    assert ids(run(decoder)["a"]) == generated(loaded, PROMPTS[1], 8)


def test_a_seed_out_of_range_is_refused(loaded: Loaded) -> None:
    decoder = Decoder(loaded.model, {END}, PREFIX)
    with pytest.raises(DataError, match="seed"):
        decoder.add_request([Request("a", PROMPTS[1], 8, temperature=1.0, seed=2**70)])


@pytest.mark.parametrize("prefix", [PREFIX, []])
def test_long_prompts_are_prefilled_in_chunks(loaded: Loaded, prefix: list[int]) -> None:
    prompts = {f"long{i}": PREFIX + prompt(90 + 7 * i, i) for i in range(3)}
    prompts |= {str(i): ids for i, ids in enumerate(PROMPTS)}
    decoder = Decoder(loaded.model, {END}, prefix, max_sequences=5, prefill_tokens=16, chunk_tokens=40)
    requests = [Request(name, ids, 25) for name, ids in prompts.items()]
    decoder.add_request(requests[:6])
    widths: list[int] = []
    hook = loaded.model.register_forward_pre_hook(
        lambda model, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        received = run(decoder, requests[6:])
    finally:
        hook.remove()
    assert {name: ids(tokens) for name, tokens in received.items()} == {
        name: generated(loaded, ids, 25) for name, ids in prompts.items()
    }
    assert max(widths) <= 40 + 5 and not decoder.running


def test_a_long_prompt_can_be_canceled_during_its_prefill(loaded: Loaded) -> None:
    decoder = Decoder(loaded.model, {END}, PREFIX, chunk_tokens=20)
    decoder.add_request([Request("long", prompt(200, 1), 8), Request("next", prompt(100, 2), 8)])
    assert decoder.step() == [] and (decoder.running, decoder.waiting) == (1, 1)
    decoder.cancel({"long"})
    assert ids(run(decoder)["next"]) == generated(loaded, prompt(100, 2), 8)


def test_a_long_prompt_gets_the_next_free_slot(loaded: Loaded) -> None:
    """Later short requests do not delay it indefinitely."""
    decoder = Decoder(loaded.model, {END}, PREFIX, max_sequences=2, chunk_tokens=64)
    decoder.add_request(
        [Request(f"s{i}", PROMPTS[i], 6 + 6 * (i % 2)) for i in range(12)] + [Request("long", prompt(300, 1), 4)]
    )
    order: list[str] = []
    while decoder.running or decoder.waiting:
        order += [token.id for token in decoder.step() if token.finished]
    assert order.index("long") < 6
