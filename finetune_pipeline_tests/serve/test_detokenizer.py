"""Streams: pieces joined are the plain answer, whatever characters and tokens do."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from finetune_pipeline.config import AnswerFormat
from finetune_pipeline.inference.stopping import final
from finetune_pipeline.serve.detokenizer import TextStream


def bytewise(ids: Sequence[int]) -> str:
    """A tokenizer of one token a byte: the worst case for characters of several bytes."""
    return bytes(ids).decode("utf-8", "replace")


def pieces_of(raw: bytes, stop: tuple[str, ...] = (), spec: AnswerFormat | None = None) -> tuple[list[str], TextStream]:
    stream = TextStream(bytewise, spec or AnswerFormat(), stop)
    return [*(stream.add(byte) for byte in raw), stream.end()], stream


@pytest.mark.parametrize("text", ["plain", "naïve — 你好", "👩‍👩‍👧 family 🇩🇪", '{"product": "Senda 📡"}', ""])
def test_characters_of_several_tokens_come_whole(text: str) -> None:
    pieces, stream = pieces_of(text.encode())
    assert "".join(pieces) == text == stream.text
    assert not any("\ufffd" in piece for piece in pieces)


def test_bytes_that_are_no_text_come_as_the_decoder_shows_them() -> None:
    raw = b"a\xff\xfeb\xe2\x82"  # broken in the middle, and cut at the end
    pieces, stream = pieces_of(raw)
    assert "".join(pieces) == stream.text == raw.decode("utf-8", "replace")


def test_pieces_come_as_early_as_they_are_certain() -> None:
    assert pieces_of("né".encode())[0] == ["n", "", "é", ""]


def test_a_stop_string_ends_the_answer_and_never_shows() -> None:
    pieces, stream = pieces_of(b"one\n\ntwo", stop=("\n\n",))
    assert "".join(pieces) == "one" and stream.stopped


def test_what_only_begins_like_a_stop_string_is_not_lost() -> None:
    pieces, stream = pieces_of(b"ab STO", stop=("STOP",))
    assert "".join(pieces) == "ab STO" and not stream.stopped
    assert "".join(pieces[:-1]) == "ab"


def test_the_earliest_of_several_stop_strings_counts() -> None:
    assert pieces_of(b"x;y.z", stop=(".", ";"))[1].text == "x"


SPECS = {
    "text": AnswerFormat(),
    "json": AnswerFormat(format="json", json_schema={"type": "object"}),
    "label": AnswerFormat(format="label", labels=("refund", "delivery")),
}


@pytest.mark.parametrize("kind", list(SPECS))
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
    pieces, stream = pieces_of(text.encode(), spec=SPECS[kind])
    assert "".join(pieces) == stream.text == final(text, SPECS[kind])
