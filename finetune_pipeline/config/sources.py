"""`sources`: files and data sets with raw rows, and the layout of a row."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from finetune_pipeline.config.section import Section, Share


class Source(Section):
    """A file, folder or data set with raw rows. Give exactly one of `path` and `hub`."""

    name: str | None = Field(
        None,
        description="Name in reports, and part of the rows' ids, which change with it; default: the file's name "
        "without its ending.",
    )
    path: str | None = Field(
        None, description="File, folder saved by `datasets`, or glob, relative to the task's folder, or any fsspec URL."
    )
    hub: str | None = Field(None, description="A data set on the Hugging Face Hub, `owner/name`; needs `revision`.")
    revision: str | None = Field(
        None, description="Full commit hash of the Hub data set, so that its rows do not change."
    )
    split: str = Field("train", description="Split of a `datasets` folder or Hub data set.")
    format: Literal["auto", "csv", "jsonl", "json", "parquet", "dataset"] = Field(
        "auto", description="File format; auto: from name and content."
    )
    encoding: str = Field(
        "auto", description="Encoding of a text file, e.g. cp1252 or shift_jis; auto: UTF-8, else detected."
    )
    rows: Literal["auto", "columns", "alpaca", "sharegpt", "messages", "preference", "unpaired"] = Field(
        "auto",
        description="Layout of a row; auto: from its keys. preference: `chosen` and `rejected` completions, after a "
        "`prompt` or as whole conversations that differ in their last message (lists of messages, or transcripts of "
        "`Human:` and `Assistant:`). unpaired: `prompt`, `completion` and a `label` that is true or false; a bad "
        "completion becomes the rejected one of a good row with the same prompt, and is dropped where there is none.",
    )
    input: str | None = Field(None, description="Column of the prompt (rows: columns).")
    output: str | None = Field(None, description="Column of the completion (rows: columns).")
    outputs: tuple[str, ...] = Field(
        (), description="Several columns that together are a JSON completion, in this order."
    )
    group: str | None = Field(
        None,
        description="Column of a customer, a thread or the like: rows with the same value are assigned to the same "
        "split. Compared without case and spacing; only a hash is kept.",
    )
    max_unreadable: Share = Field(
        0.5,
        description="Largest share of this source's rows that may be unreadable; with more, the quality gate fails "
        "however good the other rows are. 1: no limit.",
    )
    license: str | None = Field(None, description="License of the data, for the model card.")

    @model_validator(mode="after")
    def _one_place(self) -> Source:
        if self.encoding != "auto":
            try:
                b"".decode(self.encoding)  # some codecs do not decode to text: rot13, base64
            except (LookupError, UnicodeError):
                raise ValueError(
                    f"`encoding: {self.encoding}` is unknown; use for example utf-8, cp1252 or shift_jis"
                ) from None
        if (self.path is None) == (self.hub is None):
            raise ValueError("give exactly one of `path` (a file) and `hub` (a data set on the Hub)")
        if self.hub and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise ValueError("a Hub data set needs `revision`, a full commit hash: without it the rows can change")
        return self

    @property
    def label(self) -> str:
        """The name in ids and reports."""
        return self.name or Path(self.path or self.hub or "").stem
