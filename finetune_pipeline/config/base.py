"""`base`: the base model, pinned, and its license."""

from __future__ import annotations

import re

from pydantic import Field, model_validator

from finetune_pipeline.config.section import Section


class Base(Section):
    """The base model. Give exactly one of `gguf`, `path` and `hub`."""

    gguf: str | None = Field(None, description="A GGUF file: a path, or `package:<module>/<file>` inside a package.")
    path: str | None = Field(None, description="A local folder with safetensors weights and a tokenizer.")
    hub: str | None = Field(None, description="A model on the Hugging Face Hub, `owner/name`; needs `revision`.")
    revision: str | None = Field(
        None, description="Full commit hash of the Hub model: a branch or tag can change, a commit cannot."
    )
    license: str = Field(
        description="SPDX identifier of the license of the weights, e.g. apache-2.0; checked against `use`."
    )
    license_approval: str | None = Field(
        None,
        description="Who approved this license for this use, and why; needed where the built-in table does not list it "
        "or does not allow the use.",
    )

    @model_validator(mode="after")
    def _pinned(self) -> Base:
        given = [name for name in ("gguf", "path", "hub") if getattr(self, name)]
        if len(given) != 1:
            raise ValueError(f"give exactly one of `gguf`, `path` and `hub`, not {given or 'none'}")
        if self.hub and not re.fullmatch(r"[0-9a-f]{40}", self.revision or ""):
            raise ValueError(
                f"`hub: {self.hub}` needs `revision`, a full commit hash (40 hexadecimal digits): a branch or tag "
                "can change, and then your measurements are no longer valid; copy the hash from the model's page "
                "under Files, History"
            )
        return self
