"""Variables of chat templates: the arguments of a recipe, and the date that is printed"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from typing import Any

from pipelines.config.schema import RESERVED_VARIABLES
from pipelines.core.errors import UserError

# The date of templates that print today's. Llama 3 has the same one as its default. It never
# changes: adapters in stores were trained with it, and are served with it.
DEFAULT_DATE = datetime(2024, 7, 26)
_DATE_FORMATS = ("%Y-%m-%d", "%d %b %Y", "%d %B %Y", "%B %d, %Y", "%b %d, %Y")


def strftime_now(arguments: Mapping[str, Any]) -> Callable[[str], str]:
    """The function `strftime_now` of templates, on a fixed date instead of today.

    The date is the argument `date_string`, `DEFAULT_DATE` without one.
    """
    day = _parse_date(arguments.get("date_string")) or DEFAULT_DATE

    def strftime_now(format: str) -> str:
        return day.strftime(format)

    return strftime_now


def check_arguments(arguments: Mapping[str, Any], variables: Collection[str]) -> None:
    """Raise UserError for an argument of `data.template_arguments` that has no effect.

    `variables` are those that the template reads. `date_string` has an effect too where the
    template prints a date by `strftime_now`, and must be a date there.
    """
    free = sorted({*variables} - RESERVED_VARIABLES)
    if "strftime_now" in variables and "date_string" not in variables:
        date = arguments.get("date_string")
        if date is not None and _parse_date(date) is None:
            raise UserError(
                f"data.template_arguments.date_string={date!r}: the chat template formats the date "
                "itself, so this must be one such as 2025-06-30"
            )
        free = sorted({*free, "date_string"})
    for name in arguments:
        if name not in free:
            reads = f"it reads {', '.join(free)}" if free else "it reads no variable of a recipe"
            raise UserError(
                f"data.template_arguments.{name} does nothing: the chat template does not read "
                f"it; {reads}: leave {name} out"
            )


def _parse_date(text: Any) -> datetime | None:
    for form in _DATE_FORMATS:
        try:
            return datetime.strptime(str(text), form)
        except ValueError:
            continue
    return None
