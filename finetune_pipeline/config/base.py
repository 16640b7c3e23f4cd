"""`base`: the base model, pinned, with its license."""

from __future__ import annotations

import re

from pydantic import Field, model_validator

from finetune_pipeline.config.section import Section


class Base(Section):
    """The base model. Give exactly one of `gguf`, `path` and `hub`."""

    gguf: str | None = Field(None, description="A GGUF file: a path, or `package:<module>/<file>` inside a package.")
    path: str | None = Field(None, description="A local folder with safetensors weights and a tokenizer.")
    hub: str | None = Field(None, description="A model on the Hub, `owner/name`; needs `revision`.")
    revision: str | None = Field(None, description="Full commit hash of the Hub model: names move, commits do not.")
    license: str = Field(description="SPDX id of the weights' license, e.g. apache-2.0; checked against `use`.")
    license_approval: str | None = Field(
        None, description="Who allowed this license for this use, and why, where the built-in table does not know it."
    )

    @model_validator(mode="after")
    def _pinned(self) -> Base:
        given = [name for name in ("gguf", "path", "hub") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"give exactly one of `gguf`, `path` and `hub`, not {given or 'none'}")
        if self.hub and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise ValueError(
                f"`hub: {self.hub}` needs `revision`, a full commit hash (40 hexadecimal digits): what a name "
                "points to can change, and then nothing you measured holds; the hash stands on the model's page "
                "under Files, History"
            )
        return self
