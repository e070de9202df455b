"""A row of a source as a conversation, by the keys of its source."""

from __future__ import annotations

from pipelines.chat import ROW_FAULTS
from pipelines.config.schema import SourceConfig
from pipelines.core.conversation import Conversation
from pipelines.data.convert.row_error import RowError
from pipelines.data.convert.row_formats import to_conversation
from pipelines.data.read.raw_row import RawRow, reason_of


def conversation_of(raw: RawRow, source: SourceConfig, from_table: bool) -> Conversation:
    """The conversation of a row as it was read; `from_table` as in `to_conversation`.

    Raises RowError for every row that cannot be used.
    """
    if raw.error:
        raise RowError(raw.error)
    try:
        return to_conversation(
            raw.value, source.format, source.columns, source.roles, from_table=from_table
        )
    except RowError:
        raise
    except ROW_FAULTS as error:
        raise RowError(
            f"a field is not of the type that its format needs ({reason_of(error)})"
        ) from error
