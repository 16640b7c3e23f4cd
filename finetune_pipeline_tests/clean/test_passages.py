"""Instructions and other long passages are cut where they stand, and nothing of the questions with them."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from finetune_pipeline.clean import passages
from finetune_pipeline.clean.passages import FEW_TEXTS, MANY, WINDOW, without_passages

SAID = (
    "how do i get my new card when will the money arrive in account please tell me why is it that this transfer of "
    "yesterday still has not been made what can we change where does one find which number belongs to whom"
)
WORDS = SAID.split()


def told(seed: int, words: int = 40) -> str:
    """An instruction made of the words of the questions."""
    return " ".join(random.Random(seed).choices(WORDS, k=words))


def prompts(count: int, words: int = 9) -> list[str]:
    dice = random.Random(0)
    return [f"{' '.join(dice.choices(WORDS, k=words))} {n}" for n in range(count)]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda text, n: f"{told(1)} {text}",
        lambda text, n: f"{text} {told(1)}",
        lambda text, n: f"{told(1)} {text} {told(2)}",
        lambda text, n: f"{told(n % 20)} {text}",
        lambda text, n: f"{told(n % 20)} {told(77)} {text}",
        lambda text, n: f"{told(77)} {told(n % 20)} {text} {told(n % 3 + 50)}",
    ],
    ids=["before", "behind", "around", "twenty", "twenty and one", "three levels"],
)
def test_what_is_left_is_the_question(wrap: Callable[[str, int], str]) -> None:
    plain = prompts(1200)
    assert without_passages([wrap(text, n) for n, text in enumerate(plain)]) == plain


def test_a_passage_in_the_middle_is_cut_and_both_sides_stay() -> None:
    left, right = prompts(200), prompts(400)[200:]
    found = without_passages([f"{a} {told(1)} {b}" for a, b in zip(left, right, strict=True)])
    assert found == [f"{a} {b}" for a, b in zip(left, right, strict=True)]


def test_neither_the_order_nor_the_pieces_that_are_read_change_anything(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = prompts(600)
    texts = [f"{told(n % 4)} {text}" for n, text in enumerate(plain)]
    monkeypatch.setattr(passages, "_PIECE_CHARS", 1000)
    monkeypatch.setattr(passages, "_SAMPLE_CHARS", sum(map(len, texts)) // 3)
    assert without_passages(texts) == plain
    order = random.Random(1).sample(range(600), 600)
    assert without_passages([texts[i] for i in order]) == [plain[i] for i in order]


def test_variants_of_one_long_text_stay_whole() -> None:
    dice = random.Random(2)
    texts = prompts(900)
    for n in range(100):
        said = told(1, words=60).split()
        said[dice.randrange(len(said))] = f"word{n}"
        texts.append(" ".join(said))
    assert without_passages(texts) == texts


def test_what_few_texts_share_or_is_short_stays() -> None:
    few = [f"{told(1)} {text}" for text in prompts(MANY - 1)] + prompts(400)[200:]
    short = [f"{told(1)[: WINDOW - 4]} {text}" for text in prompts(200)]
    little = [f"{told(1)} {text}" for text in prompts(FEW_TEXTS - 1)]
    for texts in (few, short, little, [], [""] * 30, ["\ud800 " * 100]):
        assert without_passages(texts) == texts


def test_a_text_that_is_nothing_but_the_passage_stays() -> None:
    plain = prompts(200)
    assert without_passages([told(1), *(f"{told(1)} {text}" for text in plain)]) == [told(1), *plain]


def test_a_passage_without_spaces_is_cut() -> None:
    dice = random.Random(3)
    plain = ["".join(dice.choices("注文番号配送状況返品交換支払方法確認", k=30)) for _ in range(300)]
    head = "".join(dice.choices("あなたは銀行のヘルプデスクで働いています", k=100))
    cut = without_passages([head + text for text in plain])
    assert sum(one == text for one, text in zip(cut, plain, strict=True)) > 0.9 * len(plain)
