"""Recipe section `section`."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


def _choices(kind: Any) -> set[Any]:
    """The values that a Literal allows, also within an alternative; of any other kind, its types."""
    parts = get_args(kind)
    return set[Any]().union(*map(_choices, parts)) if parts else {kind}


class Section(BaseModel):
    """What all sections share: unknown keys are errors, values never change."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        validate_default=True,
        allow_inf_nan=False,
    )

    @field_validator("*", mode="before")
    @classmethod
    def _words(cls, value: Any, info: ValidationInfo) -> Any:
        """YAML reads a bare on or off as true or false; where a key's choices hold one of the two, the word was meant."""
        field = cls.model_fields.get(info.field_name or "")
        if isinstance(value, bool) and field and {"on", "off"} & _choices(field.annotation):
            return "on" if value else "off"
        return value
