"""General texts in training: the divergence equals its definition, and the tuned model stays closer to its base."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.config import KeepGeneral
from finetune_pipeline.errors import JobCanceled
from finetune_pipeline.records import Silent
from finetune_pipeline.train import checkpoint, job
from finetune_pipeline.train import replay as module
from finetune_pipeline.train.loop import Loop
from finetune_pipeline.train.replay import Replay, general_texts
from finetune_pipeline.train.tokenize import tokenize
from finetune_pipeline_tests.train.test_loop import LogRecorder
from finetune_pipeline_tests.train.test_training import RULES, Setup, StopAfter

KEEP = KeepGeneral(weight=2.0, texts=2)


def setup_with(
    folder: Path, layers: int | None = None, keep: KeepGeneral = KEEP, some: slice = slice(0, 7)
) -> tuple[Setup, Replay]:
    """The tiny model with some of the shortest general texts (its context is small)."""
    from transformers import AutoTokenizer

    setup = Setup(folder, RULES.model_copy(update={"layers": layers}))
    texts = tokenize(general_texts(), AutoTokenizer.from_pretrained(folder), "", setup.ends)
    texts.sort(key=lambda row: len(row.ids))
    return setup, Replay(setup.packed, texts[some], keep, RULES.seed, setup.wrapped.disable_adapter, bf16=False)


def loop_with(setup: Setup, replay: Replay, folder: Path, report: Any = None) -> Loop:
    loop = setup.loop(folder, report)
    loop.replay = replay
    return loop


@pytest.mark.parametrize("layers", [None, 1])
def test_divergence_and_gradient_equal_those_of_every_text_alone(tiny_model: Path, layers: int | None) -> None:
    import torch

    packed, replay = setup_with(tiny_model, layers)
    task, hidden = packed.packed.forward(packed.rows, replay.texts_at(5))
    divergence = replay.divergence(5, hidden)
    divergence.backward()
    plain, again = setup_with(tiny_model, layers)
    plain.model.config._attn_implementation = "eager"
    total, count = torch.zeros(()), 0
    for text in again.texts_at(5):
        ids = torch.tensor([text.ids])
        with torch.no_grad(), plain.wrapped.disable_adapter():
            base = torch.softmax(plain.model(input_ids=ids).logits[0, :-1], dim=-1)
        tuned = torch.softmax(plain.model(input_ids=ids).logits[0, :-1], dim=-1)
        total = total + (base * (base.log() - tuned.log())).sum()
        count += len(text.ids) - 1
    (total / count).backward()
    assert float(divergence.detach()) == pytest.approx(float(total.detach()) / count, rel=1e-4)
    assert float(task.detach()) == pytest.approx(float(packed.packed.loss(packed.rows)[0].detach()), rel=1e-5)
    for name, weight in packed.weights.items():
        difference = torch.linalg.norm(weight.grad - plain.weights[name].grad) / torch.linalg.norm(weight.grad)
        assert float(difference) < 1e-3, name


@pytest.mark.parametrize("tokens", [1, 7, 30])
def test_logits_in_chunks_give_the_same_divergence_and_gradient(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    import torch

    results = []
    for limit in (None, tokens):
        setup, replay = setup_with(tiny_model, keep=KeepGeneral(texts=5))
        if limit:
            monkeypatch.setattr(module, "LOGITS_BYTES", 4 * setup.packed.vocabulary * limit)
        sizes: list[int] = []
        head = setup.packed.logits

        def recorded(hidden: Any, head: Any = head, sizes: list[int] = sizes) -> Any:
            sizes.append(len(hidden))
            return head(hidden)

        monkeypatch.setattr(setup.packed, "logits", recorded)
        divergence = replay.divergence(3, setup.packed.forward([], replay.texts_at(3))[1])
        divergence.backward()
        results.append((float(divergence.detach()), {n: w.grad for n, w in setup.weights.items()}, max(sizes)))
    (whole, gradients, most), (chunked, others, few) = results
    assert few == tokens < most
    assert chunked == pytest.approx(whole, rel=1e-6)
    for name, gradient in gradients.items():
        assert float(torch.linalg.norm(gradient - others[name]) / torch.linalg.norm(gradient)) < 1e-5, name


def test_the_logits_of_a_large_vocabulary_take_less_than_a_gigabyte(tiny_model: Path) -> None:
    import torch

    setup, replay = setup_with(tiny_model)
    large = torch.nn.Linear(64, 262_144, device="meta")
    setup.packed._parts = replace(setup.packed._parts, head=large)
    assert 7 * 4 * 262_144 * replay.chunk_tokens <= 1024**3


def test_general_texts_longer_than_the_models_limit_are_skipped_and_logged(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    setup = Setup(tiny_model)
    arguments = AutoTokenizer.from_pretrained(tiny_model), setup.ends, RULES.model_copy(update={"keep_general": KEEP})
    lengths = [len(text.ids) for text in tokenize(general_texts(), arguments[0], "", setup.ends)]
    limit = sorted(lengths)[10]
    for name in ("max_position_embeddings", "sliding_window"):
        before = getattr(setup.model.config, name, None)
        setattr(setup.model.config, name, limit)
        recorder = LogRecorder()
        replay = job.replay_for(setup.wrapped, setup.packed, *arguments, recorder)
        assert replay is not None
        kept = sum(length <= limit for length in lengths)
        assert len(replay._texts) == kept < len(lengths)
        assert f"{len(lengths) - kept} of {len(lengths)} general texts are skipped" in recorder.lines[0]
        setattr(setup.model.config, name, before)
    setup.model.config.max_position_embeddings = 3
    assert job.replay_for(setup.wrapped, setup.packed, *arguments, LogRecorder()) is None


def test_every_pass_over_the_texts_uses_each_once(tiny_model: Path) -> None:
    _, replay = setup_with(tiny_model, keep=KeepGeneral(texts=1))
    first = [replay.texts_at(step)[0].id for step in range(7)]
    second = [replay.texts_at(step)[0].id for step in range(7, 14)]
    assert sorted(first) == sorted(second)
    assert first != second
    assert len(set(first)) == 7


def test_a_training_resumed_with_general_texts_has_the_same_weights(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    uninterrupted, replay = setup_with(tiny_model)
    loop = loop_with(uninterrupted, replay, tmp_path / "a")
    loop.run(uninterrupted.rows, uninterrupted.rows[:3], checkpoint.TrainingState(), uninterrupted.optimizer)
    stopped, replay = setup_with(tiny_model)
    loop = loop_with(stopped, replay, tmp_path / "b", StopAfter(3))
    with pytest.raises(JobCanceled):
        loop.run(stopped.rows, stopped.rows[:3], checkpoint.TrainingState(), stopped.optimizer)
    resumed, replay = setup_with(tiny_model)
    state = checkpoint.load(tmp_path / "b", resumed.weights, resumed.optimizer, Silent())
    loop = loop_with(resumed, replay, tmp_path / "b")
    loop.run(resumed.rows, resumed.rows[:3], state, resumed.optimizer)
    assert state.history[-1]["general_divergence"] > 0
    for name, weight in uninterrupted.weights.items():
        assert torch.equal(weight, resumed.weights[name]), name


def test_the_tuned_model_stays_closer_to_its_base_on_unseen_texts(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    distance = {}
    for weight in (0.0, 5.0):
        setup, replay = setup_with(tiny_model, keep=KeepGeneral(weight=weight, texts=2))
        loop_with(setup, replay, tmp_path / str(weight)).run(
            setup.rows, setup.rows[:3], checkpoint.TrainingState(), setup.optimizer
        )
        _, others = setup_with(tiny_model, some=slice(7, 14))
        unseen = Replay(setup.packed, others._texts, KeepGeneral(texts=7), 0, setup.wrapped.disable_adapter, bf16=False)
        with torch.no_grad():
            distance[weight] = float(unseen.divergence(0, setup.packed.forward([], unseen.texts_at(0))[1]))
    assert distance[5.0] < 0.7 * distance[0.0]


def test_no_text_of_the_evaluation_is_used_for_training() -> None:
    lines = (files("finetune_pipeline.evaluate") / "general.jsonl").read_text("utf-8").splitlines()
    measured = [json.loads(line) for line in lines]

    def plain(text: str) -> str:
        return " ".join(re.findall(r"\w+", text.lower()))

    trained = general_texts()
    assert len({row.id for row in trained}) == len(trained) >= 400
    assert len(measured) >= 200
    assert not {plain(row.prompt) for row in trained} & {plain(row["prompt"]) for row in measured}
    sentences = {plain(s) for row in trained for s in re.split(r"[.!?\n]", row.completion) if len(s.split()) > 3}
    assert not sentences & {plain(s) for row in measured for s in re.split(r"[.!?\n]", row["completion"])}
