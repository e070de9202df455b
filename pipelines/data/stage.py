"""The prepare stage: source files to packed, masked Parquet."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from pipelines.config.recipe import Recipe
from pipelines.config.schema import DataConfig
from pipelines.core.artifacts import PreparedDataset
from pipelines.core.digests import digest_of
from pipelines.core.noun_json import from_json, to_json
from pipelines.data.rejects import check_rejects
from pipelines.steps.inputs import HashedFile, Inputs
from pipelines.steps.step import BuildContext, Step
from pipelines.storage import Artifact, Store

if TYPE_CHECKING:
    import pyarrow as pa

    from pipelines.data.read.chunks import Chunk

KIND = "prepared"
SCHEMA_VERSION = 11  # raise it when the same inputs would give other shards

Tokenize = Callable[..., "Iterator[pa.Table]"]


def prepare_step(inputs: Inputs, tokenize: Tokenize | None = None) -> Step[PreparedDataset]:
    """The step that tokenizes, masks, splits and packs the sources of a recipe.

    It needs Ray unless `tokenize` does the work of `ray_tokenize.tokenized` in this process.
    Building raises UserError for a missing source, a base without a tokenizer, too many unreadable
    rows, held-out text in the training rows, a label on a turn that is no answer, or an empty
    split. Loading raises UserError when more rows were rejected than data.max_rejects_share allows
    now.
    """
    return Step(
        name="prepare",
        noun="dataset",
        kind=KIND,
        inputs=(),
        key=lambda: _key(inputs),
        check=lambda: _check(inputs),
        build=lambda context: _build(context, inputs, tokenize),
        load=lambda store, artifact: _load(store, artifact, inputs.recipe),
        summary=_summary,
        needs_ray=tokenize is None,
    )


def _key(inputs: Inputs) -> str:
    from pipelines.data.convert.format_keys import check_columns
    from pipelines.data.convert.quality_filters import QualityFilters

    config = inputs.recipe.data
    QualityFilters(config.keep)  # an error in an expression shows before any work
    check_columns(config.sources)
    literals = {"version": SCHEMA_VERSION, "data": _literals(inputs)}
    return digest_of(literals | _parents(inputs))


def _check(inputs: Inputs) -> None:
    from pipelines.data.first_look import check_first_rows
    from pipelines.data.read.chunks import cut_chunks

    files = [each.file for each in inputs.sources]
    check_first_rows(files, inputs.recipe.data.max_rejects_share)
    cut_chunks([each.file for each in inputs.benchmarks])


def _parents(inputs: Inputs) -> dict[str, str]:
    """The digests of everything outside the recipe that decides the result, by role."""
    sources = [[each.file.source, each.file.kind, each.sha256] for each in inputs.sources]
    parents = {
        "sources": digest_of(sources),
        "tokenizer": inputs.tokenizer_digest,
        "template": inputs.template_digest,
    }
    if inputs.benchmarks:
        parents["benchmarks"] = digest_of([each.sha256 for each in inputs.benchmarks])
    return parents


def _literals(inputs: Inputs) -> dict[str, Any]:
    """The keys of the data section that decide the result: not paths, limits or worker counts."""
    data = inputs.recipe.data.model_dump(
        mode="json",
        exclude={
            "workers",
            "audit",
            "benchmarks",
            "fast_tokenizer",
            "max_rejects_share",
            "chat_template",
            "unused_keys",
        },
    )
    data["sources"] = [
        {key: value for key, value in source.items() if key != "path"} for source in data["sources"]
    ]
    return data


def _chunk_keys(inputs: Inputs, chunks: Sequence[Chunk]) -> list[str]:
    """For each chunk the key of its file's tokenized rows, whatever other sources there are.

    Rows are numbered within the chunks of a file, so where the file is cut belongs to the key.
    """
    literals = _literals(inputs)
    sources = literals.pop("sources")
    literals.pop("duplicates")
    literals |= {role: digest for role, digest in _parents(inputs).items() if role != "sources"}
    cuts: dict[tuple[int, str], list[int]] = {}
    for chunk in chunks:
        cuts.setdefault((chunk.source, chunk.path), []).append(chunk.last)
    keys: dict[tuple[int, str], str] = {}
    seen: Counter[str] = Counter()
    for each in inputs.sources:
        file = each.file
        identity = {
            "version": SCHEMA_VERSION,
            "file": [file.kind, each.sha256, cuts.get((file.source, file.path), [])],
            "source": sources[file.source],
            **literals,
        }
        key = digest_of(identity)
        keys[file.source, file.path] = digest_of([key, seen[key]])  # a file may be named twice
        seen[key] += 1
    return [keys[chunk.source, chunk.path] for chunk in chunks]


def _build(context: BuildContext, inputs: Inputs, tokenize: Tokenize | None) -> None:
    from pipelines.chat.default_templates import layout_note
    from pipelines.data.audit.answers import answer_notes
    from pipelines.data.audit.row_notes import row_notes

    recipe, progress = inputs.recipe, context.progress
    renderer = inputs.renderer
    if recipe.data.fast_tokenizer:
        renderer, reason = renderer.with_fastokens()
        if reason:
            progress.note(f"prepare: the slower tokenizer is used, because {reason}")
    if tokenize is None:
        from pipelines.data.ray_tokenize import tokenized

        tokenize = tokenized
    with context.store.create_artifact(KIND, context.key, _parents(inputs)) as draft:
        run_tasks = functools.partial(tokenize, renderer=renderer, config=recipe.data)
        draft.metadata = _write(context, inputs, run_tasks, draft.path)
        # Plain text has no layout.
        layout = "" if draft.metadata.get("kind") == "text" else renderer.default_layout
        if layout:
            progress.note(f"prepare: {layout_note(layout)}")
        notes = (*row_notes(draft.metadata, recipe.data.audit), *answer_notes(draft.metadata))
        for note in notes:
            progress.note(f"prepare: {note}")
        draft.metadata |= {
            "tokenizer_digest": renderer.tokenizer_digest,
            "template_digest": renderer.template_digest,
            "template": to_json(renderer.template),
            "default_layout": layout,
            "thoughts": renderer.thought_facts,
        }


def _write(
    context: BuildContext, inputs: Inputs, tokenize: Callable[..., Any], folder: Path
) -> dict[str, Any]:
    """Write the artifact's files into `folder`; returns its metadata."""
    from pipelines.data.assemble import Assembler
    from pipelines.data.convert.decontamination import read_benchmarks
    from pipelines.data.read.chunks import cut_chunks
    from pipelines.data.token_cache import through_cache

    recipe, store = inputs.recipe, context.store
    config: DataConfig = recipe.data
    chunks = cut_chunks([each.file for each in inputs.sources])
    benchmarks = read_benchmarks([each.file for each in inputs.benchmarks])
    run_tasks = functools.partial(tokenize, benchmarks=benchmarks)
    with contextlib.ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="loraforge-")))
        assembler = stack.enter_context(Assembler(config, chunks, scratch))
        # With a single file the cache could never help: the file is new, or the dataset is found.
        tables = (
            through_cache(store, chunks, _chunk_keys(inputs, chunks), run_tasks)
            if len(inputs.sources) > 1
            else run_tasks(chunks)
        )
        with context.progress.bar("prepare rows") as advance:
            for table in tables:
                advance(assembler.add(table))
        with assembler.keeping_rejects(store, context.key):
            metadata = assembler.finish(folder)
    metadata["sources"] = [_source_entry(each) for each in inputs.sources]
    metadata["recipe_digest"] = recipe.digest
    return metadata | {"base": {"base": recipe.model.base, "revision": recipe.model.revision}}


def _source_entry(each: HashedFile) -> dict[str, Any]:
    return {
        "file": PurePosixPath(each.file.path).name,
        "source": each.file.source,
        "num_bytes": each.file.num_bytes,
        "sha256": each.sha256,
    }


def load_prepared(artifact: Artifact) -> PreparedDataset:
    """The noun of a finished `prepared` artifact."""
    return from_json(PreparedDataset, {**artifact.metadata, "ref": to_json(artifact.ref)})


def _load(store: Store, artifact: Artifact, recipe: Recipe) -> PreparedDataset:
    prepared = load_prepared(artifact)
    check_rejects(
        prepared.counts, lambda: store.local_dir(artifact.ref) / "rejects.jsonl", recipe.data
    )
    return prepared


def _summary(prepared: PreparedDataset) -> str:
    train, heldout = prepared.train, prepared.heldout
    return (
        f"{train.num_samples:,} train + {heldout.num_samples:,} held-out samples, "
        f"{train.num_tokens:,} tokens ({train.num_loss_tokens:,} with loss) in "
        f"{train.num_rows:,} packs, fill {train.fill(prepared.row_tokens):.1%}"
    )
