"""The prepare stage on Ray Data: chunks of source files -> tokens on any node -> packed Parquet, and rows back to trainers."""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.chat import ChatRenderer, TokenizerSpec
from pipelines.contracts import PreparedDataset, Progress, UserError, digest_of, from_json, to_json
from pipelines.data.shards import RowReader, SampleStore, write_shards
from pipelines.data.sources import Chunk, SourceFile, cut_chunks, find_files
from pipelines.data.tokenize import HELDOUT, REJECTED, SCHEMA, TOO_LONG, TRAIN, ChunkTokenizer
from pipelines.recipe import DataConfig, Recipe
from pipelines.storage import Artifact, Store, sha256_file

KIND = "prepared"
SCHEMA_VERSION = 1  # raise it when the same inputs would give other shards
_SPLITS = {TRAIN: "train", HELDOUT: "heldout"}
FEED_ROWS = 32  # rows that one feeding task reads
_HELDOUT_COLUMNS = ("sample_id", "prompt_ids", "reference", "prompt", "messages")


def prepare(recipe: Recipe, store: Store, progress: Progress) -> PreparedDataset:
    """Tokenize, mask, split and pack the recipe's sources, or find the finished artifact of the same inputs.

    Ray must be initialised unless the artifact is found. Raises UserError for a missing source, a base without a
    tokenizer, too many unreadable rows, or a split that stays empty.
    """
    files, renderer, parents, key = _identify(recipe)
    found = store.find(KIND, key)
    if found:
        prepared = load_prepared(found)
        progress.note(f"prepare: {_summary(prepared)} found as {prepared.ref.name}")
        return prepared
    with store.writing(KIND, key, parents) as draft:
        draft.facts = _write(recipe.data, files, renderer, draft.path, progress)
    found = store.find(KIND, key)
    assert found is not None
    prepared = load_prepared(found)
    progress.note(f"prepare: {_summary(prepared)} -> {prepared.ref.name}")
    return prepared


def find_prepared(recipe: Recipe, store: Store) -> PreparedDataset | None:
    """The finished artifact of the recipe's present sources, or None."""
    found = store.find(KIND, _identify(recipe)[3])
    return load_prepared(found) if found else None


def _identify(recipe: Recipe) -> tuple[list[SourceFile], ChatRenderer, dict[str, str], str]:
    """Source files, renderer, parents' digests and the artifact's key."""
    files = find_files(recipe.data.sources)
    renderer = ChatRenderer.load(recipe.model.base, recipe.model.revision)
    parents = {
        "sources": digest_of([[f.source, f.kind, sha256_file(Path(f.path))] for f in files]),
        "tokenizer": renderer.tokenizer_digest,
        "template": renderer.template_digest,
    }
    return files, renderer, parents, digest_of({"version": SCHEMA_VERSION, "data": _shaping(recipe.data), **parents})


def load_prepared(artifact: Artifact) -> PreparedDataset:
    """The noun of a finished `prepared` artifact."""
    return from_json(PreparedDataset, {**artifact.facts, "ref": to_json(artifact.ref)})


def _shaping(config: DataConfig) -> dict[str, Any]:
    """What of the section shapes the result: everything but the paths and the number of workers."""
    data = config.model_dump(mode="json", exclude={"workers"})
    data["sources"] = [{k: v for k, v in source.items() if k != "path"} for source in data["sources"]]
    return data


def _summary(prepared: PreparedDataset) -> str:
    train, heldout = prepared.train, prepared.heldout
    return (
        f"{train.num_samples:,} train + {heldout.num_samples:,} held-out samples, {train.num_tokens:,} tokens "
        f"({train.num_loss_tokens:,} trained) in {train.num_rows:,} packs, fill {train.fill(prepared.row_tokens):.1%}"
    )


def _write(
    config: DataConfig, files: Sequence[SourceFile], renderer: ChatRenderer, folder: Path, progress: Progress
) -> dict[str, Any]:
    chunks = cut_chunks(files)
    counts: Counter[str] = Counter()
    heldout: list[pa.Table] = []
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="loraforge-")))
        samples = {fate: stack.enter_context(SampleStore(scratch / name)) for fate, name in _SPLITS.items()}
        rejects = stack.enter_context(open(folder / "rejects.jsonl", "w"))
        with progress.bar("prepare rows") as advance:
            for table in tokenized(chunks, renderer, config):
                fates = table["fate"].to_numpy()
                for fate, split in samples.items():
                    split.add(table.filter(pa.array(fates == fate)))
                    counts[_SPLITS[fate]] += int((fates == fate).sum())
                heldout.append(table.filter(pa.array(fates == HELDOUT)).select(_HELDOUT_COLUMNS))
                for row in (
                    table.filter(pa.array(fates == REJECTED)).select(["chunk", "row", "reason", "text"]).to_pylist()
                ):
                    rejects.write(json.dumps(_reject(chunks, row)) + "\n")
                counts["read"] += len(fates)
                counts["rejected"] += int((fates == REJECTED).sum())
                counts["too_long"] += int((fates == TOO_LONG).sum())
                advance(len(fates))
        rejects.flush()
        _check_counts(config, counts, folder / "rejects.jsonl")
        stats = {
            name: write_shards(samples[f], folder, name, config.row_tokens, config.seed) for f, name in _SPLITS.items()
        }
    columns = pa.concat_tables([SCHEMA.empty_table().select(_HELDOUT_COLUMNS), *heldout])
    pq.write_table(columns.filter(columns["prompt_ids"].is_valid()), folder / "heldout_samples.parquet")
    facts = {"row_tokens": config.row_tokens, "counts": dict(sorted(counts.items()))}
    facts |= {name: to_json(split) for name, split in stats.items()}
    return facts | {"tokenizer_digest": renderer.tokenizer_digest, "template_digest": renderer.template_digest}


def _reject(chunks: Sequence[Chunk], row: Mapping[str, Any]) -> dict[str, Any]:
    return {"origin": f"{chunks[row['chunk']].path}:{row['row'] + 1}", "reason": row["reason"], "row": row["text"]}


def _check_counts(config: DataConfig, counts: Counter[str], rejects: Path) -> None:
    paths = ", ".join(source.path for source in config.sources)
    if not counts["read"]:
        raise UserError(f"data.sources: {paths}: no row in it")
    if counts["rejected"] > config.max_rejects_share * counts["read"]:
        reasons = Counter(json.loads(line)["reason"] for line in rejects.read_text().splitlines())
        worst = "; ".join(f"{count} x {reason}" for reason, count in reasons.most_common(3))
        first = json.loads(rejects.read_text().splitlines()[0])["origin"]
        raise UserError(
            f"data.sources: {counts['rejected']} of {counts['read']} rows cannot be used ({worst}; first at {first}), more "
            f"than data.max_rejects_share={config.max_rejects_share}; mend the rows or raise it"
        )
    if not counts["train"]:
        raise UserError(f"data.sources: {paths}: no row left to train on ({dict(counts)}); see data.row_tokens")


def tokenized(chunks: Sequence[Chunk], renderer: ChatRenderer, config: DataConfig) -> Iterator[pa.Table]:
    """The tables of all chunks in their order, made by Ray Data tasks wherever there are CPUs."""
    import ray.data

    if not chunks:
        return
    cpus = int(ray.cluster_resources().get("CPU", 1))
    recipe = _Shared(renderer.spec, config, tuple(chunks))
    with _quiet_context():
        items = ray.data.from_items([{"number": i} for i in range(len(chunks))], override_num_blocks=len(chunks))
        results = items.map_batches(
            functools.partial(_tokenize_chunks, shared=recipe),
            batch_size=1,
            batch_format="pyarrow",
            concurrency=max(1, min(config.workers or cpus, len(chunks))),
            num_cpus=1,
        )
        yield from results.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)


@dataclass(frozen=True)
class _Shared:
    """What every task needs; its digest lets a worker process keep the tokenizer that it built for an earlier task."""

    spec: TokenizerSpec
    config: DataConfig
    chunks: tuple[Chunk, ...]

    def __hash__(self) -> int:
        return hash((self.spec.tokenizer_json, self.spec.template, self.config.model_dump_json()))


@functools.lru_cache(maxsize=1)
def _tokenizer_of(shared: _Shared) -> ChunkTokenizer:
    return ChunkTokenizer(ChatRenderer(shared.spec), shared.config)


def _tokenize_chunks(batch: pa.Table, shared: _Shared) -> Iterator[pa.Table]:
    for number in batch["number"].to_pylist():
        yield SCHEMA.empty_table()
        yield from _tokenizer_of(shared).tables(number, shared.chunks[number])


@contextlib.contextmanager
def _quiet_context() -> Iterator[None]:
    """A Ray Data context of our own: order kept, so that the result depends on no timing, and no bars of its own."""
    import ray.data

    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    # Importing ray.data sets its logger back to DEBUG: it shall say what "ray" may say, no more.
    logging.getLogger("ray.data").setLevel(logging.getLogger("ray").getEffectiveLevel())
    with ray.data.DataContext.current(context):
        yield


class RowFeed:
    """Streams the packed rows of one split of a prepared artifact's local folder, in an order that the caller sets."""

    def __init__(self, folder: Path | str, split: str = "train") -> None:
        self.folder = Path(folder)
        self.split = split

    @property
    def num_rows(self) -> int:
        return RowReader(self.folder, self.split).num_rows

    def batches(self, order: np.ndarray, batch_size: int, start: int = 0) -> Iterator[dict[str, Any]]:
        """Rows `order[start:]` in batches: input_ids int32 and loss_weights float32 [B, T], and per row lists of its
        sample_lengths (int32 arrays) and sample_ids. The last batch may be shorter. Inside a train worker its tasks
        take no CPU from the trainers.
        """
        import ray.data

        wanted = np.asarray(order, np.int64)[start:]
        if not len(wanted):
            return
        tasks = np.array_split(wanted, -(-len(wanted) // FEED_ROWS))
        with _quiet_context():
            items = ray.data.from_items([{"rows": rows.tolist()} for rows in tasks], override_num_blocks=len(tasks))
            rows = items.map_batches(
                functools.partial(_read_rows, folder=self.folder, split=self.split),
                batch_size=1, batch_format="pyarrow", num_cpus=0, concurrency=1,
            )  # fmt: skip
            for table in rows.iter_batches(batch_size=batch_size, batch_format="pyarrow", prefetch_batches=2):
                yield as_batch(table)


def _read_rows(batch: pa.Table, folder: Path, split: str) -> pa.Table:
    return RowReader(folder, split).read(batch["rows"].combine_chunks().flatten().to_numpy())


def as_batch(table: pa.Table) -> dict[str, Any]:
    """A table of packed rows as arrays [B, T] and lists."""
    width = table.schema.field("input_ids").type.list_size
    arrays = {
        name: table[name].combine_chunks().flatten().to_numpy().reshape(-1, width)
        for name in ("input_ids", "loss_weights")
    }
    lengths = [np.asarray(lengths, np.int32) for lengths in table["sample_lengths"].to_pylist()]
    return {**arrays, "sample_lengths": lengths, "sample_ids": table["sample_ids"].to_pylist()}
