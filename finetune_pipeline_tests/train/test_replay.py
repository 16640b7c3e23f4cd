"""General texts in training: the divergence is the plain one, a resumed training is the same, the model stays nearer to
its base, and no text of the evaluation is trained on."""

from __future__ import annotations

import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from finetune_pipeline.config import KeepGeneral
from finetune_pipeline.errors import JobCancelled
from finetune_pipeline.records import Silent
from finetune_pipeline.train import checkpoint, job
from finetune_pipeline.train import replay as module
from finetune_pipeline.train.loop import Loop
from finetune_pipeline.train.replay import Replay, general_texts
from finetune_pipeline.train.tokenize import encode
from finetune_pipeline_tests.train.test_training import RULES, Setup, StopAfter

KEEP = KeepGeneral(weight=2.0, texts=2)


def setup_with(
    folder: Path, layers: int | None = None, keep: KeepGeneral = KEEP, some: slice = slice(0, 7)
) -> tuple[Setup, Replay]:
    """The tiny model with some of the shortest general texts (its context is small)."""
    from transformers import AutoTokenizer

    setup = Setup(folder, RULES.model_copy(update={"layers": layers}))
    texts = encode(general_texts(), AutoTokenizer.from_pretrained(folder), "", setup.ends)
    texts.sort(key=lambda row: len(row.ids))
    return setup, Replay(setup.packed, texts[some], keep, RULES.seed, setup.wrapped.disable_adapter, bf16=False)


def loop_with(setup: Setup, replay: Replay, folder: Path, report: Any = None) -> Loop:
    loop = setup.loop(folder, report)
    loop.replay = replay
    return loop


@pytest.mark.parametrize("layers", [None, 1])
def test_the_divergence_and_its_gradient_are_those_of_the_plain_way(tiny_model: Path, layers: int | None) -> None:
    import torch

    fast, replay = setup_with(tiny_model, layers)
    task, hidden = fast.packed.forward(fast.rows, replay.at(5))
    divergence = replay.divergence(5, hidden)
    divergence.backward()
    plain, again = setup_with(tiny_model, layers)
    plain.model.config._attn_implementation = "eager"
    total, count = torch.zeros(()), 0
    for text in again.at(5):
        ids = torch.tensor([text.ids])
        with torch.no_grad(), plain.wrapped.disable_adapter():
            base = torch.softmax(plain.model(input_ids=ids).logits[0, :-1], dim=-1)
        tuned = torch.softmax(plain.model(input_ids=ids).logits[0, :-1], dim=-1)
        total = total + (base * (base.log() - tuned.log())).sum()
        count += len(text.ids) - 1
    (total / count).backward()
    assert float(divergence.detach()) == pytest.approx(float(total.detach()) / count, rel=1e-4)
    assert float(task.detach()) == pytest.approx(float(fast.packed.loss(fast.rows)[0].detach()), rel=1e-5)
    for name, weight in fast.weights.items():
        difference = torch.linalg.norm(weight.grad - plain.weights[name].grad) / torch.linalg.norm(weight.grad)
        assert float(difference) < 1e-3, name


@pytest.mark.parametrize("tokens", [1, 7, 30])
def test_logits_computed_in_pieces_give_the_same_divergence_and_gradient(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    import torch

    found = []
    for limit in (None, tokens):
        setup, replay = setup_with(tiny_model, keep=KeepGeneral(texts=5))
        if limit:
            monkeypatch.setattr(module, "LOGITS_BYTES", 4 * setup.packed.vocabulary * limit)
        sizes: list[int] = []
        head = setup.packed.logits

        def seen(hidden: Any, head: Any = head, sizes: list[int] = sizes) -> Any:
            sizes.append(len(hidden))
            return head(hidden)

        monkeypatch.setattr(setup.packed, "logits", seen)
        divergence = replay.divergence(3, setup.packed.forward([], replay.at(3))[1])
        divergence.backward()
        found.append((float(divergence.detach()), {n: w.grad for n, w in setup.weights.items()}, max(sizes)))
    (whole, gradients, most), (pieces, others, few) = found
    assert few == tokens < most
    assert pieces == pytest.approx(whole, rel=1e-6)
    for name, gradient in gradients.items():
        assert float(torch.linalg.norm(gradient - others[name]) / torch.linalg.norm(gradient)) < 1e-5, name


def test_the_logits_of_a_large_vocabulary_take_less_than_a_gigabyte(tiny_model: Path) -> None:
    import torch

    setup, replay = setup_with(tiny_model)
    setup.packed._head = torch.nn.Linear(64, 262_144, device="meta")
    assert 7 * 4 * 262_144 * replay.piece_tokens <= 1024**3


def test_general_texts_that_the_model_cannot_read_are_left_out_and_told(tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    setup = Setup(tiny_model)
    given = AutoTokenizer.from_pretrained(tiny_model), setup.ends, RULES.model_copy(update={"keep_general": KEEP})
    lengths = [len(text.ids) for text in encode(general_texts(), given[0], "", setup.ends)]
    limit = sorted(lengths)[10]
    for name in ("max_position_embeddings", "sliding_window"):
        before = getattr(setup.model.config, name, None)
        setattr(setup.model.config, name, limit)
        heard = Heard()
        replay = job.replay_for(setup.wrapped, setup.packed, *given, heard)
        assert replay is not None
        kept = sum(length <= limit for length in lengths)
        assert len(replay._texts) == kept < len(lengths)
        assert f"{len(lengths) - kept} of {len(lengths)} general texts are left out" in heard.said[0]
        setattr(setup.model.config, name, before)
    setup.model.config.max_position_embeddings = 3
    assert job.replay_for(setup.wrapped, setup.packed, *given, Heard()) is None


class Heard(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def log(self, text: str) -> None:
        self.said.append(text)


def test_every_pass_over_the_texts_sees_each_once(tiny_model: Path) -> None:
    _, replay = setup_with(tiny_model, keep=KeepGeneral(texts=1))
    first = [replay.at(step)[0].id for step in range(7)]
    second = [replay.at(step)[0].id for step in range(7, 14)]
    assert sorted(first) == sorted(second)
    assert first != second
    assert len(set(first)) == 7


def test_a_training_resumed_with_general_texts_gives_the_same_weights(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    straight, replay = setup_with(tiny_model)
    loop = loop_with(straight, replay, tmp_path / "a")
    loop.run(straight.rows, straight.rows[:3], checkpoint.State(), straight.optimizer)
    stopped, replay = setup_with(tiny_model)
    loop = loop_with(stopped, replay, tmp_path / "b", StopAfter(3))
    with pytest.raises(JobCancelled):
        loop.run(stopped.rows, stopped.rows[:3], checkpoint.State(), stopped.optimizer)
    resumed, replay = setup_with(tiny_model)
    state = checkpoint.load(tmp_path / "b", resumed.weights, resumed.optimizer, Silent())
    loop = loop_with(resumed, replay, tmp_path / "b")
    loop.run(resumed.rows, resumed.rows[:3], state, resumed.optimizer)
    assert state.history[-1]["general_divergence"] > 0
    for name, weight in straight.weights.items():
        assert torch.equal(weight, resumed.weights[name]), name


def test_the_tuned_model_stays_nearer_to_its_base_on_texts_it_was_not_held_on(tiny_model: Path, tmp_path: Path) -> None:
    import torch

    distance = {}
    for weight in (0.0, 5.0):
        setup, replay = setup_with(tiny_model, keep=KeepGeneral(weight=weight, texts=2))
        loop_with(setup, replay, tmp_path / str(weight)).run(
            setup.rows, setup.rows[:3], checkpoint.State(), setup.optimizer
        )
        _, others = setup_with(tiny_model, some=slice(7, 14))
        unseen = Replay(setup.packed, others._texts, KeepGeneral(texts=7), 0, setup.wrapped.disable_adapter, bf16=False)
        with torch.no_grad():
            distance[weight] = float(unseen.divergence(0, setup.packed.forward([], unseen.at(0))[1]))
    assert distance[5.0] < 0.7 * distance[0.0]


def test_no_text_of_the_evaluation_is_trained_on() -> None:
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
