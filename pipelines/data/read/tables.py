"""Record batches of Arrow files, and sizes of the parts of tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

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


def table_sizes(path: str, kind: str) -> list[int]:
    """Bytes of each row group (Parquet) or record batch (Arrow); ValueError for other files."""
    import pyarrow.parquet

    with open_binary(path) as stream:
        if kind == "arrow":
            return [batch.nbytes for batch in arrow_batches(stream)]
        metadata = pyarrow.parquet.ParquetFile(stream).metadata
        return [metadata.row_group(g).total_byte_size for g in range(metadata.num_row_groups)]
