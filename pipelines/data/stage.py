"""The prepare stage."""

from __future__ import annotations

import contextlib
import functools
import gc
import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa

from pipelines.chat import ChatRenderer, TokenizerSpec
from pipelines.config.recipe import Recipe
from pipelines.config.schema import DataConfig
from pipelines.core.artifacts import PreparedDataset, from_json, to_json
from pipelines.core.digests import digest_of
from pipelines.core.progress import Progress
from pipelines.data.assemble import Assembler
from pipelines.data.convert.decontamination import Benchmarks, benchmark_files, read_benchmarks
from pipelines.data.convert.quality_filters import Rules
from pipelines.data.convert.row_formats import check_columns
from pipelines.data.read.chunks import Chunk, cut_chunks
from pipelines.data.rejects import check_rejects
from pipelines.data.token_cache import through_cache
from pipelines.data.tokenize import SCHEMA, ChunkTokenizer, unless_stopped
from pipelines.packed.feed import _quiet_context
from pipelines.sources.files import SourceFile, find_files
from pipelines.sources.open import content_digest
from pipelines.storage import Artifact, Store

KIND = "prepared"


SCHEMA_VERSION = 7  # raise it when the same inputs would give other shards


def prepare(
    recipe: Recipe,
    store: Store,
    progress: Progress,
    tokenize: Callable[..., Iterator[pa.Table]] | None = None,
) -> PreparedDataset:
    """Tokenize, mask, split and pack the recipe's sources, or find the finished artifact of the same inputs.

    Ray must be initialised unless the artifact is found, or `tokenize` does the work of `tokenized` without it. Raises
    UserError for a missing source, a base without a tokenizer, too many unreadable rows, held-out text in the training
    rows, a trained token of a turn that is no answer, or a split that stays empty.
    """
    inputs, renderer = _identify(recipe)
    prepared = _find(recipe, store, inputs)
    if prepared:
        progress.note(f"prepare: {_summary(prepared)} found as {prepared.ref.name}")
        return prepared
    if recipe.data.fast_tokenizer:
        renderer, reason = renderer.sped_up()
        if reason:
            progress.note(f"prepare: slower, because {reason}")
    with store.create_artifact(KIND, inputs.key, inputs.parents) as draft:
        make = functools.partial(tokenize or tokenized, renderer=renderer, config=recipe.data)
        draft.metadata = _write(recipe, store, inputs, make, draft.path, progress)
        unshown = draft.metadata["checks"].get("texts_beside_calls_failed", 0)
        if unshown:
            progress.note(
                f"prepare: in {unshown:,} turns the base's chat template leaves out the text beside tool calls"
            )
        draft.metadata |= {
            "tokenizer_digest": renderer.tokenizer_digest,
            "template_digest": renderer.template_digest,
        }
    found = store.find(KIND, inputs.key)
    assert found is not None
    prepared = load_prepared(found)
    progress.note(f"prepare: {_summary(prepared)} -> {prepared.ref.name}")
    return prepared


def find_prepared(recipe: Recipe, store: Store) -> PreparedDataset | None:
    """The finished artifact of the recipe's present sources, or None. Raises UserError when too many rows of it were
    unreadable for the recipe's present limit.
    """
    return _find(recipe, store, _identify(recipe)[0])


@dataclass(frozen=True)
class _Inputs:
    """Everything that decides the result: the files with their digests, the parents and the section's shaping keys."""

    files: tuple[SourceFile, ...]
    digests: tuple[str, ...]
    parents: dict[str, str]
    shaping: dict[str, Any]

    @property
    def key(self) -> str:
        return digest_of({"version": SCHEMA_VERSION, "data": self.shaping, **self.parents})

    def chunk_keys(self, chunks: Sequence[Chunk]) -> list[str]:
        """For each chunk the key of its file's tokenized rows, whatever else the recipe's sources hold.

        The rows are numbered within the file's chunks, so where it is cut belongs to the key.
        """
        apart = ("sources", "duplicates")
        shaping = {name: value for name, value in self.shaping.items() if name not in apart}
        shaping |= {name: digest for name, digest in self.parents.items() if name != "sources"}
        cuts: dict[tuple[int, str], list[int]] = {}
        for chunk in chunks:
            cuts.setdefault((chunk.source, chunk.path), []).append(chunk.last)
        keys: dict[tuple[int, str], str] = {}
        seen: Counter[str] = Counter()
        for file, content in zip(self.files, self.digests, strict=True):
            source, cut = (
                self.shaping["sources"][file.source],
                cuts.get((file.source, file.path), []),
            )
            key = digest_of(
                {
                    "version": SCHEMA_VERSION,
                    "file": [file.kind, content, cut],
                    "source": source,
                    **shaping,
                }
            )
            keys[file.source, file.path] = digest_of(
                [key, seen[key]]
            )  # the same file may be there twice
            seen[key] += 1
        return [keys[chunk.source, chunk.path] for chunk in chunks]


def _identify(recipe: Recipe) -> tuple[_Inputs, ChatRenderer]:
    Rules(recipe.data.keep)  # a mistake shows before any work
    check_columns([source.columns for source in recipe.data.sources])
    files, benchmarks = find_files(recipe.data.sources), benchmark_files(recipe.data.benchmarks)
    renderer = ChatRenderer.load(recipe.model.base, recipe.model.revision)
    digests = tuple(content_digest(f.path) for f in files)
    parents = {
        "sources": digest_of(
            [[f.source, f.kind, digest] for f, digest in zip(files, digests, strict=True)]
        ),
        "tokenizer": renderer.tokenizer_digest,
        "template": renderer.template_digest,
    }
    if benchmarks:
        parents["benchmarks"] = digest_of([content_digest(f.path) for f in benchmarks])
    shaping = _shaping(recipe.data)
    if "strftime_now" in (renderer.spec.template or ""):
        shaping["date"] = date.today().isoformat()  # the template writes it into every row
    return _Inputs(tuple(files), digests, parents, shaping), renderer


def _find(recipe: Recipe, store: Store, inputs: _Inputs) -> PreparedDataset | None:
    found = store.find(KIND, inputs.key)
    if found is None:
        return None
    prepared = load_prepared(found)
    check_rejects(
        prepared.counts, lambda: store.local_dir(found.ref) / "rejects.jsonl", recipe.data
    )
    return prepared


def load_prepared(artifact: Artifact) -> PreparedDataset:
    """The noun of a finished `prepared` artifact."""
    return from_json(PreparedDataset, {**artifact.metadata, "ref": to_json(artifact.ref)})


def _shaping(config: DataConfig) -> dict[str, Any]:
    """What of the section shapes the result: everything but the paths and the number of workers."""
    data = config.model_dump(
        mode="json",
        exclude={"workers", "audit", "benchmarks", "fast_tokenizer", "max_rejects_share"},
    )
    data["sources"] = [
        {k: v for k, v in source.items() if k != "path"} for source in data["sources"]
    ]
    return data


def _summary(prepared: PreparedDataset) -> str:
    train, heldout = prepared.train, prepared.heldout
    return (
        f"{train.num_samples:,} train + {heldout.num_samples:,} held-out samples, {train.num_tokens:,} tokens "
        f"({train.num_loss_tokens:,} trained) in {train.num_rows:,} packs, fill {train.fill(prepared.row_tokens):.1%}"
    )


def _write(
    recipe: Recipe,
    store: Store,
    inputs: _Inputs,
    tokenize: Callable[..., Any],
    folder: Path,
    progress: Progress,
) -> dict[str, Any]:
    config, chunks = recipe.data, cut_chunks(inputs.files)
    benchmarks = read_benchmarks(benchmark_files(config.benchmarks))
    make = functools.partial(tokenize, benchmarks=benchmarks)
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="loraforge-")))
        collector = stack.enter_context(Assembler(config, chunks, scratch))
        # Of one file alone nothing would ever be found again: it is tokenized anew or the whole dataset is found.
        tables = (
            through_cache(store, chunks, inputs.chunk_keys(chunks), make)
            if len(inputs.files) > 1
            else make(chunks)
        )
        with progress.bar("prepare rows") as advance:
            for table in tables:
                advance(collector.add(table))
        with collector.keeping_rejects(store, inputs.key):
            facts = collector.finish(folder)
    facts["sources"] = [
        {
            "file": PurePosixPath(file.path).name,
            "source": file.source,
            "num_bytes": file.num_bytes,
            "sha256": digest,
        }
        for file, digest in zip(inputs.files, inputs.digests, strict=True)
    ]
    facts["recipe_digest"] = recipe.digest
    return facts | {"base": {"base": recipe.model.base, "revision": recipe.model.revision}}


def tokenized(
    chunks: Sequence[Chunk],
    renderer: ChatRenderer,
    config: DataConfig,
    benchmarks: Benchmarks | None = None,
) -> Iterator[pa.Table]:
    """The tables of all chunks in their order, made by Ray Data tasks wherever there are CPUs."""
    import ray.data

    if not chunks:
        return
    cpus = int(ray.cluster_resources().get("CPU", 1))
    shared = _Shared(
        renderer.spec, renderer.fast, config, tuple(chunks), benchmarks or Benchmarks()
    )
    with _quiet_context():
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
    """What every task needs; its digest lets a worker process keep the tokenizer that it built for an earlier task."""

    spec: TokenizerSpec
    fast: bool
    config: DataConfig
    chunks: tuple[Chunk, ...]
    benchmarks: Benchmarks

    def __hash__(self) -> int:
        return hash((self.spec.tokenizer_json, self.spec.template, self.config.model_dump_json()))


@functools.lru_cache(maxsize=1)
def _tokenizer_of(shared: _Shared) -> ChunkTokenizer:
    # One task, one core: Ray counts on it.
    os.environ.setdefault("RAYON_NUM_THREADS", "1")
    gc.freeze()  # what Ray and its libraries hold stays anyway: do not walk it again for every thousand rows
    return ChunkTokenizer(ChatRenderer(shared.spec, shared.fast), shared.config, shared.benchmarks)


def _tokenize_chunks(batch: pa.Table, shared: _Shared) -> Iterator[pa.Table]:
    for number in batch["number"].to_pylist():
        yield SCHEMA.empty_table()
        yield from _tokenizer_of(shared).tables_or_stop(number, shared.chunks[number])
