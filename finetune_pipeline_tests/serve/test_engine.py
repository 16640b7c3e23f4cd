"""The engine: adapters side by side on one base, loaded and unloaded while others are computed."""

from __future__ import annotations

import queue
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.errors import StorageError
from finetune_pipeline.serve.engine import AdapterGone, Engine, EngineFull, GenerationRequest, TokenEvent

MakeAdapter = Callable[[int], Path]
PROMPT = tuple(range(20, 44))


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[Engine]:
    made = Engine(tiny_model, max_rows=4, max_requests=32)
    yield made
    made.stop()


class Collect:
    """A sink that keeps the pieces; `tokens()` waits for the last."""

    def __init__(self) -> None:
        self.pieces: queue.Queue[TokenEvent] = queue.Queue()

    def __call__(self, piece: TokenEvent) -> None:
        self.pieces.put(piece)

    def tokens(self) -> list[int]:
        found = []
        while True:
            piece = self.pieces.get(timeout=30)
            found.append(piece.token)
            if piece.reason is not None:
                assert piece.reason != "error", piece.error
                return found


def ask(adapter: str | None, limit: int = 12, prompt: tuple[int, ...] = PROMPT, prefix: int = 8) -> GenerationRequest:
    return GenerationRequest(adapter, prompt, PROMPT[:prefix], limit)


def answer(engine: Engine, *asks: GenerationRequest) -> list[list[int]]:
    sinks = [Collect() for _ in asks]
    for one, sink in zip(asks, sinks, strict=True):
        engine.submit(one, sink)
    return [sink.tokens() for sink in sinks]


def reference(base: Path, adapter: Path | None, limit: int = 12) -> list[int]:
    """What transformers and peft generate by themselves."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, str(adapter)) if adapter else model
    ids = torch.tensor([PROMPT])
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False)
    found: list[int] = out[0, len(PROMPT) :].tolist()
    return found


def test_adapters_and_base_at_the_same_time_answer_as_each_alone(
    engine: Engine, tiny_model: Path, make_adapter: MakeAdapter
) -> None:
    engine.load("one", make_adapter(1))
    engine.load("two", make_adapter(2))
    together = answer(engine, *(ask(name) for name in ("one", "two", None, "one", None, "two", "two")))
    one, two, base = (
        reference(tiny_model, make_adapter(1)),
        reference(tiny_model, make_adapter(2)),
        reference(tiny_model, None),
    )
    assert together == [one, two, base, one, base, two, two]
    assert one != two != base != one


def test_the_shared_prefix_changes_nothing(engine: Engine, make_adapter: MakeAdapter) -> None:
    engine.load("one", make_adapter(1))
    with_prefix, without, other = answer(engine, ask("one"), ask("one", prefix=0), ask("one", prompt=(7, *PROMPT[1:])))
    assert with_prefix == without != other


def test_an_adapter_stays_until_its_last_lease_is_given_back(engine: Engine, make_adapter: MakeAdapter) -> None:
    engine.load("three", make_adapter(3))
    with engine.lease("three"):
        before = answer(engine, ask("three"))
        engine.unload("three")
        with pytest.raises(AdapterGone), engine.lease("three"):
            pass
        assert answer(engine, ask("three")) == before
    answer(engine, ask(None))  # a round of the engine later it is gone
    assert "three" not in engine._adapters.names
    engine.load("three", make_adapter(3))
    assert answer(engine, ask("three")) == before


def test_all_adapters_may_go_and_the_base_is_the_base_again(tiny_model: Path, make_adapter: MakeAdapter) -> None:
    engine = Engine(tiny_model)
    base = answer(engine, ask(None))
    engine.load("one", make_adapter(1))
    tuned = answer(engine, ask("one"))
    engine.unload("one")
    assert answer(engine, ask(None)) == base != tuned
    engine.load("two", make_adapter(2))
    assert answer(engine, ask("two")) not in (base, tuned)
    engine.stop()


def test_loading_and_unloading_meanwhile_disturbs_nobody(engine: Engine, make_adapter: MakeAdapter) -> None:
    engine.load("one", make_adapter(1))
    expected = answer(engine, ask("one", limit=60))
    sink = Collect()
    engine.submit(ask("one", limit=60), sink)
    for _ in range(3):
        engine.load("two", make_adapter(2))
        engine.unload("two")
    assert sink.tokens() == expected[0]


def test_an_adapter_that_does_not_fit_is_refused_and_nothing_is_left_behind(
    engine: Engine, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    engine.load("one", make_adapter(1))
    before = answer(engine, ask("one"), ask(None))
    for number, spoil in enumerate((_half, _foreign, _narrow)):
        folder = tmp_path / str(number)
        shutil.copytree(make_adapter(2), folder)
        weights = folder / "adapter_model.safetensors"
        save_file(spoil(load_file(weights)), weights)
        with pytest.raises(StorageError, match="fit"):
            engine.load("spoilt", folder)
        assert "spoilt" not in engine.loaded and "spoilt" not in engine._adapters.names
    shutil.rmtree(tmp_path / "0")
    with pytest.raises(StorageError, match="holds no adapter_model"):
        engine.load("spoilt", tmp_path / "0")
    assert answer(engine, ask("one"), ask(None)) == before


def test_a_first_adapter_that_does_not_fit_does_no_harm(
    tiny_model: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    engine = Engine(tiny_model)
    before = answer(engine, ask(None))
    shutil.copytree(make_adapter(2), tmp_path / "spoilt")
    weights = tmp_path / "spoilt" / "adapter_model.safetensors"
    save_file(_half(load_file(weights)), weights)
    with pytest.raises(StorageError, match="only in part"):
        engine.load("two", tmp_path / "spoilt")
    (tmp_path / "spoilt" / "adapter_config.json").write_text("{}", "utf-8")
    with pytest.raises(StorageError, match="does not fit"):
        engine.load("two", tmp_path / "spoilt")
    assert answer(engine, ask(None)) == before
    engine.load("two", make_adapter(2))
    assert answer(engine, ask("two")) == [reference(tiny_model, make_adapter(2))]
    engine.stop()


def _half(weights: dict[str, Any]) -> dict[str, Any]:
    return dict(list(weights.items())[: len(weights) // 2])


def _foreign(weights: dict[str, Any]) -> dict[str, Any]:
    return {
        **weights,
        "base_model.model.model.layers.9.mlp.up_proj.lora_A.weight": next(iter(weights.values())).clone(),
    }


def _narrow(weights: dict[str, Any]) -> dict[str, Any]:
    return {name: weight[:, :-1].contiguous() for name, weight in weights.items()}


def test_a_cancelled_request_makes_room(engine: Engine) -> None:
    sink = Collect()
    ticket = engine.submit(ask(None, limit=600), sink)
    sink.pieces.get(timeout=30)
    engine.cancel(ticket)
    answer(engine, ask(None))
    assert engine.busy == (0, 0)
    count = sink.pieces.qsize()
    answer(engine, ask(None))
    assert sink.pieces.qsize() == count < 2000


def test_more_than_may_wait_are_told_at_once(tiny_model: Path) -> None:
    engine = Engine(tiny_model, max_rows=1, max_requests=2)
    tickets = [engine.submit(ask(None, limit=1500), Collect()) for _ in range(2)]
    with pytest.raises(EngineFull):
        engine.submit(ask(None), Collect())
    for ticket in tickets:
        engine.cancel(ticket)
    answer(engine, ask(None))
    engine.stop()


def test_a_request_that_cannot_be_computed_fails_alone(engine: Engine) -> None:
    bad, good = Collect(), Collect()
    engine.submit(ask(None, limit=100_000), bad)
    engine.submit(ask(None), good)
    piece = bad.pieces.get(timeout=30)
    assert piece.reason == "error" and "shorten the prompt" in piece.error
    assert len(good.tokens()) == 12


def test_long_rows_keep_nobody_waiting(engine: Engine) -> None:
    """All places are taken by rows that go on for long; what comes then is answered meanwhile."""
    sinks = [Collect() for _ in range(8)]
    tickets = [engine.submit(ask(None, limit=1500), sink) for sink in sinks]
    tickets.append(engine.submit(ask(None, prompt=tuple(PROMPT[0] + i % 300 for i in range(1900))), Collect()))
    sinks[0].pieces.get(timeout=30)
    assert answer(engine, ask(None))[0] == answer(engine, ask(None))[0]
    assert sinks[0].pieces.qsize() < 200
    for ticket in tickets:
        engine.cancel(ticket)


def test_a_long_prompt_is_answered_as_transformers_does(engine: Engine, tiny_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    prompt = tuple(20 + (7 * i) % 300 for i in range(1800))
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        model: Any = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
    assert answer(engine, ask(None, prompt=prompt)) == [out[0, 1800:].tolist()]


def test_a_stop_rule_ends_an_answer(engine: Engine) -> None:
    from dataclasses import replace

    full = answer(engine, ask(None))[0]
    assert answer(engine, replace(ask(None), stop=lambda ids: len(ids) == 5))[0] == full[:5]


def test_stopping_tells_those_who_wait(tiny_model: Path) -> None:
    engine = Engine(tiny_model)
    sink = Collect()
    engine.submit(ask(None, limit=600), sink)
    sink.pieces.get(timeout=30)
    engine.stop()
    last = [sink.pieces.get(timeout=1) for _ in range(sink.pieces.qsize())][-1]
    assert last.reason == "error" and "stopping" in last.error
