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
    """Step until nothing is left; `late` requests are admitted after some steps."""
    given: dict[str, list[Token]] = {}
    steps = 0
    while decoder.running or decoder.waiting or late:
        if steps == after:
            decoder.add_request(late)
            late = ()
        for token in decoder.step():
            given.setdefault(token.id, []).append(token)
        steps += 1
    return given


def ids(tokens: Sequence[Token]) -> list[int]:
    return [token.token for token in tokens]


def plain(loaded: Loaded, prompt_ids: list[int], new: int, end: int = END) -> list[int]:
    """What transformers' own generate gives."""
    import torch

    out = loaded.model.generate(
        torch.tensor([prompt_ids]), max_new_tokens=new, do_sample=False, eos_token_id=end, pad_token_id=0
    )
    return [int(i) for i in out[0, len(prompt_ids) :]]


@pytest.mark.parametrize("step_tokens", [16, 1024])
def test_greedy_equals_generate_though_rows_join_midway(loaded: Loaded, step_tokens: int) -> None:
    requests = [Request(str(i), ids, 25) for i, ids in enumerate(PROMPTS)]
    decoder = Decoder(loaded.model, {END}, PREFIX, max_rows=5, step_tokens=step_tokens)
    decoder.add_request(requests[:4])
    given = run(decoder, requests[4:])
    assert {key: ids(tokens) for key, tokens in given.items()} == {
        str(i): plain(loaded, ids, 25) for i, ids in enumerate(PROMPTS)
    }


def test_with_an_adapter_it_equals_generate_too(tiny_model: Path, tmp_path: Path, loaded: Loaded) -> None:
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32), config)
    dice = torch.Generator().manual_seed(1)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data = torch.randn(weight.shape, generator=dice)
    model.save_pretrained(tmp_path)
    tuned = load(tiny_model, tmp_path)
    decoder = Decoder(tuned.model, {END}, PREFIX)
    decoder.add_request([Request(str(i), PROMPTS[i], 12) for i in range(4)])
    given = {key: ids(tokens) for key, tokens in run(decoder).items()}
    assert given == {str(i): plain(tuned, PROMPTS[i], 12) for i in range(4)}
    with base_only(tuned):
        base = Decoder(tuned.model, {END}, PREFIX)
        base.add_request([Request("0", PROMPTS[0], 12)])
        assert ids(run(base)["0"]) == plain(loaded, PROMPTS[0], 12) != given["0"]


def test_an_end_mark_ends_a_row_and_frees_its_place(loaded: Loaded) -> None:
    end = plain(loaded, PROMPTS[1], 25, end=-1)[4]
    decoder = Decoder(loaded.model, {end}, PREFIX)
    decoder.add_request([Request("a", PROMPTS[1], 25), Request("b", PROMPTS[2], 9)])
    given = run(decoder)
    assert given["a"][-1].reason == "eos"
    assert ids(given["a"]) == plain(loaded, PROMPTS[1], 25, end)
    assert len(given["a"]) <= 5
    assert all(not token.finished for token in given["a"][:-1])
    assert decoder.running == decoder.waiting == 0


def test_the_last_row_takes_the_place_of_one_that_ended(loaded: Loaded) -> None:
    lengths = [2, 30, 4, 30, 1, 30]
    decoder = Decoder(loaded.model, {-1}, PREFIX, max_rows=4)
    decoder.add_request([Request(str(i), PROMPTS[i], length) for i, length in enumerate(lengths)])
    given = run(decoder)
    for i, length in enumerate(lengths):
        assert ids(given[str(i)]) == plain(loaded, PROMPTS[i], length, end=-1)
        assert given[str(i)][-1].reason == "length"


def test_a_stop_rule_ends_a_row(loaded: Loaded) -> None:
    decoder = Decoder(loaded.model, {-1})
    decoder.add_request([Request("a", PROMPTS[0], 25, stop=lambda answer: len(answer) == 3)])
    tokens = run(decoder)["a"]
    assert [token.reason for token in tokens] == [None, None, "stop"]


def test_cancelled_rows_leave_and_do_not_disturb_others(loaded: Loaded) -> None:
    decoder = Decoder(loaded.model, {-1}, max_rows=2)
    decoder.add_request([Request(str(i), PROMPTS[i], 12) for i in range(3)])
    decoder.step()
    decoder.cancel({"0", "2", "unknown"})
    assert (decoder.running, decoder.waiting) == (1, 0)
    given = run(decoder)
    assert ids(given["1"]) == plain(loaded, PROMPTS[1], 12, end=-1)[1:]
    assert set(given) == {"1"}


def test_sampling_depends_on_seed_and_not_on_neighbors(loaded: Loaded) -> None:
    asked = Request("s", PROMPTS[3], 20, temperature=1.0, top_p=0.9, seed=4)
    alone, among = Decoder(loaded.model, {-1}), Decoder(loaded.model, {-1})
    alone.add_request([asked])
    among.add_request([Request("n", PROMPTS[5], 20, temperature=1.0, seed=8), asked, Request("g", PROMPTS[6], 20)])
    first = ids(run(alone)["s"])
    assert first == ids(run(among)["s"])
    other = Decoder(loaded.model, {-1})
    other.add_request([Request("s", PROMPTS[3], 20, temperature=1.0, top_p=0.9, seed=5)])
    assert first != ids(run(other)["s"])


def test_a_tiny_top_p_is_greedy(loaded: Loaded) -> None:
    decoder = Decoder(loaded.model, {-1})
    decoder.add_request([Request("s", PROMPTS[3], 10, temperature=1.0, top_p=1e-6, seed=4)])
    assert ids(run(decoder)["s"]) == plain(loaded, PROMPTS[3], 10, end=-1)


def test_only_allowed_tokens_come(loaded: Loaded) -> None:
    def allowed(answer: Sequence[int]) -> Collection[int] | None:
        return {40 + len(answer), 60} if len(answer) < 3 else None

    decoder = Decoder(loaded.model, {-1})
    decoder.add_request([Request("c", PROMPTS[0], 5, allowed=allowed)])
    tokens = ids(run(decoder)["c"])
    assert all(token in {40 + i, 60} for i, token in enumerate(tokens[:3]))


def test_the_cache_keeps_within_its_bound(loaded: Loaded) -> None:
    decoder = Decoder(loaded.model, {-1}, max_rows=8, max_cached_tokens=256)
    decoder.add_request([Request(str(i), prompt(30 if i < 6 else 150, i), 20) for i in range(8)])
    most = 0
    while decoder.running or decoder.waiting:
        decoder.step()
        most = max(most, decoder._cache.rows * decoder._cache.capacity)
    assert 0 < most <= 256


def test_a_request_that_can_never_fit_is_refused_with_its_id(loaded: Loaded) -> None:
    decoder = Decoder(loaded.model, {END})
    with pytest.raises(DataError, match="request long: 2040 prompt tokens and 20 for the answer"):
        decoder.add_request([Request("fine", PROMPTS[0], 5), Request("long", prompt(2040, 1), 20)])
    assert decoder.waiting == 0
    with pytest.raises(DataError, match="request empty"):
        decoder.add_request([Request("empty", [], 5)])


def test_the_model_attends_as_before_afterwards(loaded: Loaded) -> None:
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


def test_a_window_that_a_row_outgrows_is_refused() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = MistralConfig(vocab_size=64, num_key_value_heads=1, head_dim=16, sliding_window=8, **sizes)
    decoder = Decoder(MistralForCausalLM(config).eval(), {0})
    decoder.add_request([Request("short", [1, 2, 3], 2)])
    run(decoder)
    decoder.add_request([Request("long", list(range(1, 13)), 2)])
    with pytest.raises(ModelError, match="12 tokens is longer than the attention window of 8"):
        decoder.step()


def test_a_row_whose_token_cannot_be_chosen_ends_alone(loaded: Loaded) -> None:
    def dead_end(answer: Sequence[int]) -> Collection[int] | None:
        return [] if len(answer) == 2 else None

    def broken(answer: Sequence[int]) -> bool:
        raise ValueError("no such thing")

    decoder = Decoder(loaded.model, {END}, PREFIX)
    decoder.add_request([Request("good", PROMPTS[1], 8), Request("dead", PROMPTS[2], 8, allowed=dead_end)])
    decoder.add_request([Request("stop", PROMPTS[3], 8, stop=broken)])
    given = run(decoder)
    assert ids(given["good"]) == plain(loaded, PROMPTS[1], 8)
    assert [len(given["dead"]), given["dead"][-1].reason] == [3, "error"] and "no token" in given["dead"][-1].error
    assert [len(given["stop"]), given["stop"][-1].reason] == [1, "error"] and "no such thing" in given["stop"][-1].error


@pytest.mark.parametrize(("temperature", "top_p"), [(1e-38, 1.0), (1e-320, 1.0), (1.0, 1e-300), (1e-38, 1e-300)])
def test_extreme_sampling_is_greedy(loaded: Loaded, temperature: float, top_p: float) -> None:
    decoder = Decoder(loaded.model, {END}, PREFIX)
    decoder.add_request([Request("a", PROMPTS[1], 8, temperature=temperature, top_p=top_p)])
    assert ids(run(decoder)["a"]) == plain(loaded, PROMPTS[1], 8)


def test_a_seed_that_no_generator_takes_is_refused(loaded: Loaded) -> None:
    decoder = Decoder(loaded.model, {END}, PREFIX)
    with pytest.raises(DataError, match="seed"):
        decoder.add_request([Request("a", PROMPTS[1], 8, temperature=1.0, seed=2**70)])


@pytest.mark.parametrize("prefix", [PREFIX, []])
def test_long_prompts_are_read_in_pieces_beside_the_others(loaded: Loaded, prefix: list[int]) -> None:
    asked = {f"long{i}": PREFIX + prompt(90 + 7 * i, i) for i in range(3)}
    asked |= {str(i): ids for i, ids in enumerate(PROMPTS)}
    decoder = Decoder(loaded.model, {END}, prefix, max_rows=5, step_tokens=16, piece_tokens=40)
    requests = [Request(name, ids, 25) for name, ids in asked.items()]
    decoder.add_request(requests[:6])
    widths: list[int] = []
    hook = loaded.model.register_forward_pre_hook(
        lambda model, args, kwargs: widths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    try:
        given = run(decoder, requests[6:])
    finally:
        hook.remove()
    assert {name: ids(tokens) for name, tokens in given.items()} == {
        name: plain(loaded, ids, 25) for name, ids in asked.items()
    }
    assert max(widths) <= 40 + 5 and not decoder.running


def test_a_long_prompt_can_be_cancelled_while_it_is_read(loaded: Loaded) -> None:
    decoder = Decoder(loaded.model, {END}, PREFIX, piece_tokens=20)
    decoder.add_request([Request("long", prompt(200, 1), 8), Request("next", prompt(100, 2), 8)])
    assert decoder.step() == [] and (decoder.running, decoder.waiting) == (1, 1)
    decoder.cancel({"long"})
    assert ids(run(decoder)["next"]) == plain(loaded, prompt(100, 2), 8)


def test_a_prompt_that_was_read_gets_the_next_place(loaded: Loaded) -> None:
    """Those that came after it do not pass it for ever."""
    decoder = Decoder(loaded.model, {END}, PREFIX, max_rows=2, piece_tokens=64)
    decoder.add_request(
        [Request(f"s{i}", PROMPTS[i], 6 + 6 * (i % 2)) for i in range(12)] + [Request("long", prompt(300, 1), 4)]
    )
    order: list[str] = []
    while decoder.running or decoder.waiting:
        order += [token.id for token in decoder.step() if token.finished]
    assert order.index("long") < 6
