"""`sources`: where raw rows come from, and how one row is laid out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from finetune_pipeline.config.section import Section, Share


class Source(Section):
    """Where raw rows come from. Give one of `path` and `hub`."""

    name: str | None = Field(None, description="Short name used in ids and reports; default: the file's name.")
    path: str | None = Field(
        None, description="File, folder saved by `datasets`, or glob, relative to the task's folder, or any fsspec URL."
    )
    hub: str | None = Field(None, description="A data set on the Hub, `owner/name`.")
    revision: str | None = Field(None, description="The Hub data set's commit; needed with `hub`, so that rows stay.")
    split: str = Field("train", description="Which split of a `datasets` folder or Hub data set is read.")
    format: Literal["auto", "csv", "jsonl", "json", "parquet", "dataset"] = Field(
        "auto", description="How the file is encoded; `auto` goes by name and content."
    )
    encoding: str = Field(
        "auto", description="Of a text file, if it is not UTF-8 and guessed wrong, e.g. cp1252 or shift_jis."
    )
    rows: Literal["auto", "columns", "alpaca", "sharegpt", "messages", "preference"] = Field(
        "auto", description="How one row is laid out; `auto` goes by its keys."
    )
    input: str | None = Field(None, description="Column that holds the question (rows: columns).")
    output: str | None = Field(None, description="Column that holds the answer (rows: columns).")
    outputs: tuple[str, ...] = Field((), description="Several columns that together make a JSON answer, in this order.")
    group: str | None = Field(
        None,
        description="Column that names what belongs together (a customer, a thread): never split across train/test. "
        "Compared without regard to case and spacing; only a hash of it is kept.",
    )
    max_unreadable: Share = Field(
        0.5,
        description="Share of this source's rows that may be unreadable; if more are, the source is broken, and the "
        "quality gate fails however good the other rows are. 1 for a source that is known to be broken.",
    )
    license: str | None = Field(None, description="License of the data, carried into the model card.")

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        if self.encoding != "auto":
            try:
                b"".decode(self.encoding)  # not every codec is one of text: rot13, base64
            except (LookupError, UnicodeError):
                raise ValueError(f"`encoding: {self.encoding}` is unknown; usual: utf-8, cp1252, shift_jis") from None
        if (self.path is None) == (self.hub is None):
            raise ValueError("give exactly one of `path` (a file) and `hub` (a data set on the Hub)")
        if self.hub and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise ValueError("a Hub data set needs `revision`, a full commit hash: without it the rows may change")
        return self

    @property
    def label(self) -> str:
        return self.name or Path(self.path or self.hub or "").stem
