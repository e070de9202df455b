"""The tokenizing tasks of the prepare stage on Ray Data."""

from __future__ import annotations

import functools
import gc
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import pyarrow as pa

from pipelines.chat import ChatRenderer, TokenizerSpec
from pipelines.config.schema import DataConfig
from pipelines.data.convert.decontamination import Benchmarks
from pipelines.data.read.chunks import Chunk
from pipelines.data.tokenize import ChunkTokenizer
from pipelines.data.tokenized_table import SCHEMA, unless_stopped
from pipelines.packed.feed import ordered_ray_data


def tokenized(
    chunks: Sequence[Chunk],
    renderer: ChatRenderer,
    config: DataConfig,
    benchmarks: Benchmarks | None = None,
) -> Iterator[pa.Table]:
    """The tables of all chunks in their order, made by Ray Data tasks on the cluster's CPUs."""
    import ray.data

    if not chunks:
        return
    cpus = int(ray.cluster_resources().get("CPU", 1))
    shared = _Shared(
        renderer.spec, renderer.fast, config, tuple(chunks), benchmarks or Benchmarks()
    )
    with ordered_ray_data():
        items = ray.data.from_items(
            [{"number": i} for i in range(len(chunks))], override_num_blocks=len(chunks)
        )
        results = items.map_batches(
            functools.partial(_tokenize_chunks, shared=shared),
            batch_size=1,
            batch_format="pyarrow",
            concurrency=max(1, min(config.workers or cpus, len(chunks))),
            num_cpus=1,
        )
        tables = results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)
        yield from map(unless_stopped, tables)


@dataclass(frozen=True)
class _Shared:
    """Input of every task. Hashable, so that a worker process can reuse the tokenizer it built."""

    spec: TokenizerSpec
    fast: bool
    config: DataConfig
    chunks: tuple[Chunk, ...]
    benchmarks: Benchmarks

    def __hash__(self) -> int:
        return hash((self.spec.tokenizer_json, self.spec.template, self.config.model_dump_json()))


@functools.lru_cache(maxsize=1)
def _tokenizer_of(shared: _Shared) -> ChunkTokenizer:
    # Ray counts one CPU for a task.
    os.environ.setdefault("RAYON_NUM_THREADS", "1")
    # The objects of Ray and its libraries live as long as the process: the collector need not visit
    # them again and again.
    gc.freeze()
    return ChunkTokenizer(ChatRenderer(shared.spec, shared.fast), shared.config, shared.benchmarks)


def _tokenize_chunks(batch: pa.Table, shared: _Shared) -> Iterator[pa.Table]:
    for number in batch["number"].to_pylist():
        yield SCHEMA.empty_table()
        yield from _tokenizer_of(shared).tables_or_stop(number, shared.chunks[number])
