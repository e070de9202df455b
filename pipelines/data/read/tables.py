"""Record batches of Arrow files, their rows, and sizes of the parts of tables."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from pipelines.core.errors import UserError
from pipelines.sources.open import open_binary


def arrow_batches(stream: Any) -> Iterator[Any]:
    """Record batches of an Arrow file, or of an Arrow stream as the datasets library writes it."""
    import pyarrow as pa

    magic = stream.read(6)
    stream.seek(0)
    if magic == b"ARROW1":
        file = pa.ipc.open_file(stream)
        yield from (file.get_batch(i) for i in range(file.num_record_batches))
    else:
        yield from pa.ipc.open_stream(stream)


def check_names(schema: Any, path: str) -> None:
    """Raise UserError for a column name that occurs twice: a row has one value a name."""
    repeated = [name for name in schema.names if schema.names.count(name) > 1]
    if repeated:
        raise UserError(f"{path}: two columns are named {repeated[0]!r}; rename one of them")


def rows_of(batch: Any) -> list[dict[str, Any]]:
    """The rows of a batch. Columns of bytes that are UTF-8 are text.

    Some writers, such as Impala and Spark's older ones, store text without saying that it is text.
    Raises ValueError, KeyError or OverflowError when a value has no Python form.
    """
    import pyarrow as pa

    has_maps = any("map<" in str(field.type) for field in batch.schema)
    rows = batch.to_pylist(**{"maps_as_pydicts": "strict"} if has_maps else {})
    kinds = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view)
    for field in batch.schema:
        if any(is_kind(field.type) for is_kind in kinds):
            for row in rows:
                if row[field.name] is not None:
                    with contextlib.suppress(UnicodeDecodeError):
                        row[field.name] = row[field.name].decode()
    return rows


def table_sizes(path: str, kind: str) -> list[int]:
    """Bytes of each row group (Parquet) or record batch (Arrow); ValueError for other files."""
    import pyarrow.parquet

    with open_binary(path) as stream:
        if kind == "arrow":
            return [batch.nbytes for batch in arrow_batches(stream)]
        metadata = pyarrow.parquet.ParquetFile(stream).metadata
        return [metadata.row_group(g).total_byte_size for g in range(metadata.num_row_groups)]
