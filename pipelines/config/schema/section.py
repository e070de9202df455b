"""The base class of every section."""

from __future__ import annotations

from typing import Any, get_args

from pydantic import BaseModel, ConfigDict, ValidationInfo, field_validator


def _choices(kind: Any) -> set[Any]:
    """The values that a Literal allows, also inside a union; of any other annotation, its types."""
    parts = get_args(kind)
    return set[Any]().union(*map(_choices, parts)) if parts else {kind}


class Section(BaseModel):
    """A section of a recipe: unknown keys are errors, and values never change."""

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
        """Turn true and false back into on and off for a key that has one of them as a choice.

        YAML 1.1 reads a bare `on` or `off` as a boolean.
        """
        field = cls.model_fields.get(info.field_name or "")
        if isinstance(value, bool) and field and {"on", "off"} & _choices(field.annotation):
            return "on" if value else "off"
        return value
