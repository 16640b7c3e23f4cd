"""The engine: adapters on bases of several kinds, loaded and unloaded while requests run."""

from __future__ import annotations

import queue
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.errors import ModelError, StorageError
from finetune_pipeline.serve.engine import Engine
from finetune_pipeline.serve.generation_request import (
    BaseId,
    EngineFull,
    GenerationRequest,
    ModelGone,
    ModelId,
    TokenEvent,
)

MakeAdapter = Callable[[int], Path]
PROMPT = tuple(range(20, 44))


BASE = BaseId("tiny")


def named(adapter: str | None) -> ModelId:
    return ModelId(BASE, adapter)


def loaded_engine(tiny_model: Path, **settings: int) -> Engine:
    """An engine with the tiny model as a base."""
    engine = Engine(**settings)
    engine.models.load_base(BASE, tiny_model)
    return engine


@pytest.fixture(scope="module")
def engine(tiny_model: Path) -> Iterator[Engine]:
    engine = loaded_engine(tiny_model, max_sequences=4, max_requests=32)
    yield engine
    engine.stop()


def adapter_names(engine: Engine, base: BaseId = BASE) -> frozenset[str]:
    return engine._pool.bases[base].adapters.names


class Collect:
    """A sink that keeps the events; `tokens()` waits for the last one."""

    def __init__(self) -> None:
        self.events: queue.Queue[TokenEvent] = queue.Queue()

    def __call__(self, event: TokenEvent) -> None:
        self.events.put(event)

    def tokens(self) -> list[int]:
        tokens = []
        while True:
            event = self.events.get(timeout=30)
            tokens.append(event.token)
            if event.reason is not None:
                assert event.reason != "error", event.error
                return tokens


def request(
    adapter: str | None, limit: int = 12, prompt: tuple[int, ...] = PROMPT, prefix: int = 8
) -> GenerationRequest:
    return GenerationRequest(named(adapter), prompt, PROMPT[:prefix], limit)


def answers(engine: Engine, *requests: GenerationRequest) -> list[list[int]]:
    sinks = [Collect() for _ in requests]
    for generation_request, sink in zip(requests, sinks, strict=True):
        engine.submit(generation_request, sink)
    return [sink.tokens() for sink in sinks]


def reference(base: Path, adapter: Path | None, limit: int = 12) -> list[int]:
    """The tokens of transformers' `generate` with peft."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model = PeftModel.from_pretrained(model, str(adapter)) if adapter else model
    ids = torch.tensor([PROMPT])
    with torch.inference_mode():
        out = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=limit, do_sample=False)
    tokens: list[int] = out[0, len(PROMPT) :].tolist()
    return tokens


def test_concurrent_adapters_answer_as_transformers_does(
    engine: Engine, tiny_model: Path, make_adapter: MakeAdapter
) -> None:
    engine.models.load(named("one"), make_adapter(1))
    engine.models.load(named("two"), make_adapter(2))
    together = answers(engine, *(request(name) for name in ("one", "two", None, "one", None, "two", "two")))
    one, two, base = (
        reference(tiny_model, make_adapter(1)),
        reference(tiny_model, make_adapter(2)),
        reference(tiny_model, None),
    )
    assert together == [one, two, base, one, base, two, two]
    assert one != two != base != one


def test_the_shared_prefix_changes_no_answer(engine: Engine, make_adapter: MakeAdapter) -> None:
    engine.models.load(named("one"), make_adapter(1))
    with_prefix, without, other = answers(
        engine, request("one"), request("one", prefix=0), request("one", prompt=(7, *PROMPT[1:]))
    )
    assert with_prefix == without != other


def test_an_adapter_is_unloaded_after_its_last_lease(engine: Engine, make_adapter: MakeAdapter) -> None:
    engine.models.load(named("three"), make_adapter(3))
    with engine.models.lease(named("three")):
        before = answers(engine, request("three"))
        engine.models.unload(named("three"))
        with pytest.raises(ModelGone), engine.models.lease(named("three")):
            pass
        assert answers(engine, request("three")) == before
    answers(engine, request(None))  # one round of the engine later it is unloaded
    assert "three" not in adapter_names(engine)
    engine.models.load(named("three"), make_adapter(3))
    assert answers(engine, request("three")) == before


def test_after_unloading_all_adapters_the_base_model_is_unchanged(tiny_model: Path, make_adapter: MakeAdapter) -> None:
    engine = loaded_engine(tiny_model)
    base = answers(engine, request(None))
    engine.models.load(named("one"), make_adapter(1))
    tuned = answers(engine, request("one"))
    engine.models.unload(named("one"))
    assert answers(engine, request(None)) == base != tuned
    engine.models.load(named("two"), make_adapter(2))
    assert answers(engine, request("two")) not in (base, tuned)
    engine.stop()


def test_loading_and_unloading_changes_no_running_answer(engine: Engine, make_adapter: MakeAdapter) -> None:
    engine.models.load(named("one"), make_adapter(1))
    expected = answers(engine, request("one", limit=60))
    sink = Collect()
    engine.submit(request("one", limit=60), sink)
    for _ in range(3):
        engine.models.load(named("two"), make_adapter(2))
        engine.models.unload(named("two"))
    assert sink.tokens() == expected[0]


def test_an_adapter_that_does_not_fit_is_refused_and_leaves_nothing(
    engine: Engine, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    engine.models.load(named("one"), make_adapter(1))
    before = answers(engine, request("one"), request(None))
    for number, damage in enumerate((_half, _foreign, _narrow)):
        folder = tmp_path / str(number)
        shutil.copytree(make_adapter(2), folder)
        weights = folder / "adapter_model.safetensors"
        save_file(damage(load_file(weights)), weights)
        with pytest.raises(StorageError, match="fit"):
            engine.models.load(named("damaged"), folder)
        assert named("damaged") not in engine.models.loaded and "damaged" not in adapter_names(engine)
    shutil.rmtree(tmp_path / "0")
    with pytest.raises(StorageError, match="holds no adapter_model"):
        engine.models.load(named("damaged"), tmp_path / "0")
    assert answers(engine, request("one"), request(None)) == before


def test_a_first_adapter_that_does_not_fit_leaves_the_base_model_unchanged(
    tiny_model: Path, make_adapter: MakeAdapter, tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    engine = loaded_engine(tiny_model)
    before = answers(engine, request(None))
    shutil.copytree(make_adapter(2), tmp_path / "damaged")
    weights = tmp_path / "damaged" / "adapter_model.safetensors"
    save_file(_half(load_file(weights)), weights)
    with pytest.raises(StorageError, match="only in part"):
        engine.models.load(named("two"), tmp_path / "damaged")
    (tmp_path / "damaged" / "adapter_config.json").write_text("{}", "utf-8")
    with pytest.raises(StorageError, match="does not fit"):
        engine.models.load(named("two"), tmp_path / "damaged")
    assert answers(engine, request(None)) == before
    engine.models.load(named("two"), make_adapter(2))
    assert answers(engine, request("two")) == [reference(tiny_model, make_adapter(2))]
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


def test_a_canceled_request_frees_its_slot(engine: Engine) -> None:
    sink = Collect()
    ticket = engine.submit(request(None, limit=600), sink)
    sink.events.get(timeout=30)
    engine.cancel(ticket)
    answers(engine, request(None))
    assert engine.busy == (0, 0)
    count = sink.events.qsize()
    answers(engine, request(None))
    assert sink.events.qsize() == count < 2000


def test_a_full_engine_refuses_at_once(tiny_model: Path) -> None:
    engine = loaded_engine(tiny_model, max_sequences=1, max_requests=2)
    tickets = [engine.submit(request(None, limit=1500), Collect()) for _ in range(2)]
    with pytest.raises(EngineFull):
        engine.submit(request(None), Collect())
    for ticket in tickets:
        engine.cancel(ticket)
    answers(engine, request(None))
    engine.stop()


def test_a_request_that_cannot_be_computed_fails_alone(engine: Engine) -> None:
    bad, good = Collect(), Collect()
    engine.submit(request(None, limit=100_000), bad)
    engine.submit(request(None), good)
    event = bad.events.get(timeout=30)
    assert event.reason == "error" and "shorten the prompt" in event.error
    assert len(good.tokens()) == 12


def test_long_requests_do_not_delay_short_ones(engine: Engine) -> None:
    """All slots are taken by long requests; a short one is answered before they end."""
    sinks = [Collect() for _ in range(8)]
    tickets = [engine.submit(request(None, limit=1500), sink) for sink in sinks]
    tickets.append(engine.submit(request(None, prompt=tuple(PROMPT[0] + i % 300 for i in range(1900))), Collect()))
    sinks[0].events.get(timeout=30)
    assert answers(engine, request(None))[0] == answers(engine, request(None))[0]
    assert sinks[0].events.qsize() < 200
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
    assert answers(engine, request(None, prompt=prompt)) == [out[0, 1800:].tolist()]


def test_a_stop_rule_ends_an_answer(engine: Engine) -> None:
    full = answers(engine, request(None))[0]
    assert answers(engine, replace(request(None), stop=lambda ids: len(ids) == 5))[0] == full[:5]


def test_stop_ends_running_requests_with_an_error(tiny_model: Path) -> None:
    engine = loaded_engine(tiny_model)
    sink = Collect()
    engine.submit(request(None, limit=600), sink)
    sink.events.get(timeout=30)
    engine.stop()
    last = [sink.events.get(timeout=1) for _ in range(sink.events.qsize())][-1]
    assert last.reason == "error" and "stopping" in last.error


def test_a_base_is_freed_after_the_last_model_on_it(
    engine: Engine, tiny_model: Path, make_adapter: MakeAdapter
) -> None:
    other = BaseId("tiny", precision="bf16")
    tuned = ModelId(other, "one")
    loaded = engine.models.load_base(other, tiny_model)
    assert engine.models.load_base(other, tiny_model) is loaded, "a loaded base is not read again"
    engine.models.load(tuned, make_adapter(1))
    before = answers(engine, request("one"), replace(request(None), model=tuned))
    with engine.models.lease(tuned):
        engine.models.unload(tuned)
        engine.models.unload(ModelId(other))
        answers(engine, request(None))  # a round of the engine
        assert other in engine._pool.bases
        assert answers(engine, replace(request(None), model=tuned)) == before[1:]
        assert engine.models.load_base(other, tiny_model) is loaded, "a base in use is kept"
        engine.models.unload(ModelId(other))
    answers(engine, request(None))
    assert other not in engine._pool.bases and BASE in engine._pool.bases
    assert answers(engine, request("one")) == before[:1]
    failed = Collect()
    engine.submit(replace(request(None), model=tuned), failed)
    event = failed.events.get(timeout=30)
    assert event.reason == "error" and "not loaded" in event.error


def test_the_memory_of_a_freed_base_is_released(tiny_model: Path) -> None:
    import weakref

    engine = loaded_engine(tiny_model)
    answers(engine, request(None))
    weight = weakref.ref(next(iter(engine._pool.bases.values())).adapters._model.lm_head.weight)
    assert weight() is not None
    engine.models.unload(named(None))
    engine.models._on_thread(lambda: None).result()
    assert weight() is None
    engine.stop()


def test_a_base_that_cannot_be_loaded_leaves_nothing(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be loaded"):
        engine.models.load_base(BaseId("nothing"), tmp_path)
    with pytest.raises(StorageError, match="trained weights"):
        engine.models.load_base(BaseId("nothing"), tmp_path, trained=True)
    assert BaseId("nothing") not in engine._pool.bases
    assert ModelId(BaseId("nothing")) not in engine.models.loaded
