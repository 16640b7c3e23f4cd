"""The detokenizer: joined deltas are the plain answer, however characters are spread over tokens."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.inference.stopping import final
from finetune_pipeline.serve.detokenizer import TextStream


def bytewise(ids: Sequence[int]) -> str:
    """A tokenizer with one token per byte: the worst case for characters of several bytes."""
    return bytes(ids).decode("utf-8", "replace")


def deltas_of(
    raw: bytes, stop: tuple[str, ...] = (), answer_format: AnswerFormat | None = None
) -> tuple[list[str], TextStream]:
    stream = TextStream(bytewise, answer_format or AnswerFormat(), stop)
    return [*(stream.add(byte) for byte in raw), stream.end()], stream


@pytest.mark.parametrize("text", ["plain", "naïve — 你好", "👩‍👩‍👧 family 🇩🇪", '{"product": "Senda 📡"}', ""])
def test_characters_of_several_tokens_are_never_split(text: str) -> None:
    deltas, stream = deltas_of(text.encode())
    assert "".join(deltas) == text == stream.text
    assert not any("\ufffd" in delta for delta in deltas)


def test_invalid_bytes_become_replacement_characters() -> None:
    raw = b"a\xff\xfeb\xe2\x82"  # invalid in the middle, incomplete at the end
    deltas, stream = deltas_of(raw)
    assert "".join(deltas) == stream.text == raw.decode("utf-8", "replace")


def test_deltas_are_sent_as_soon_as_they_are_final() -> None:
    assert deltas_of("né".encode())[0] == ["n", "", "é", ""]


def test_a_stop_string_ends_the_answer_and_is_not_sent() -> None:
    deltas, stream = deltas_of(b"one\n\ntwo", stop=("\n\n",))
    assert "".join(deltas) == "one" and stream.stopped


def test_an_incomplete_stop_string_is_sent_at_the_end() -> None:
    deltas, stream = deltas_of(b"ab STO", stop=("STOP",))
    assert "".join(deltas) == "ab STO" and not stream.stopped
    assert "".join(deltas[:-1]) == "ab"


def test_the_earliest_of_several_stop_strings_ends_the_answer() -> None:
    assert deltas_of(b"x;y.z", stop=(".", ";"))[1].text == "x"


FORMATS = {
    "text": AnswerFormat(),
    "json": AnswerFormat(format="json", json_schema={"type": "object"}),
    "label": AnswerFormat(format="label", labels=("refund", "delivery")),
}


@pytest.mark.parametrize("kind", list(FORMATS))
@pytest.mark.parametrize(
    "text",
    [
        '{"a": {"b": "}"}} I hope',
        ' \n{"a": 1}\n\n',
        '{"a": 1',
        "refund\nThe customer",
        "\n refund ",
        "refund  ",
        "[1, 2] [3]",
        " ",
    ],
)
def test_a_stream_ends_where_the_evaluation_ends_an_answer(kind: str, text: str) -> None:
    deltas, stream = deltas_of(text.encode(), answer_format=FORMATS[kind])
    assert "".join(deltas) == stream.text == final(text, FORMATS[kind])
