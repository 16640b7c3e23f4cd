"""Base class of the sections: a frozen pydantic model in which unknown keys are errors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from pydantic import BaseModel, ConfigDict, Field

Share = Annotated[float, Field(ge=0.0, le=1.0)]
Count = Annotated[int, Field(ge=0)]


class Section(BaseModel):
    """A section of task.yaml. `OPERATIONAL` names its settings that change no result, such as prices: a change of one
    makes no artifact stale."""

    OPERATIONAL: ClassVar[frozenset[str]] = frozenset()

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)

    def result_values(self) -> dict[str, Any]:
        """The settings that change a result, by their names in task.yaml: a part of the keys of artifacts."""
        plain = self.model_dump(mode="json", by_alias=True, exclude=set(self.OPERATIONAL))
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if isinstance(value, Section) and name not in self.OPERATIONAL and not field.exclude:
                plain[field.alias or name] = value.result_values()
        return plain


def flat(section: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings of a section by their dotted names in task.yaml: {"lora.r": 16, …}."""
    found: dict[str, Any] = {}
    for name, value in section.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found
