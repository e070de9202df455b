"""The code that `bench.data` times: tokenizers, packing in memory, the stage without Ray."""

from __future__ import annotations

import itertools
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from bench._text import long_vocabulary_tokenizer
from pipelines.chat import ChatRenderer, TokenizerSpec
from pipelines.config.recipe import Recipe, parse_recipe
from pipelines.config.schema import DataConfig
from pipelines.core.artifacts import PreparedDataset
from pipelines.core.conversation import Conversation
from pipelines.core.progress import SILENT
from pipelines.data.assemble import Assembler
from pipelines.data.convert.decontamination import Benchmarks
from pipelines.data.read.chunks import Chunk, cut_chunks
from pipelines.data.stage import prepare_step
from pipelines.data.tokenize import ChunkTokenizer
from pipelines.packed.pack import best_fit, group_rows
from pipelines.packed.writer import GROUP_TOKENS
from pipelines.sources.source_files import find_files
from pipelines.steps.inputs import Inputs
from pipelines.steps.runner import Runner
from pipelines.storage import Store

POCKET = Path(__file__).resolve().parent.parent / "assets" / "pocket" / "model"
ROW_TOKENS = 4096
BATCH_ROWS = 1024
# The published expression by which Llama-3 splits words. fastokens has a fast path for it, but not
# for the similar expression of the benchmark's own tokenizer.
_LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def renderers(folder: Path) -> dict[str, ChatRenderer]:
    """The pocket's tokenizer and one of 100,000 tokens, both on fastokens."""
    template = (POCKET / "chat_template.jinja").read_text()
    spec = TokenizerSpec(long_vocabulary_tokenizer(folder), template, {"eos_token": "<|end|>"})
    plain = {"pocket": ChatRenderer.load(str(POCKET)), "100k BPE": ChatRenderer(spec)}
    return {name: renderer.with_fastokens()[0] for name, renderer in plain.items()}


def split_as_llama3(renderer: ChatRenderer) -> ChatRenderer:
    """The same vocabulary with words split as Llama-3 does."""
    data = json.loads(renderer.spec.tokenizer_json)
    data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = _LLAMA3_WORDS
    return ChatRenderer(replace(renderer.spec, tokenizer_json=json.dumps(data))).with_fastokens()[0]


def num_tokens_alone(renderer: ChatRenderer, texts: Sequence[str]) -> int:
    """Tokens of texts by the `tokenizers` library, without masks."""
    import tokenizers

    tokenizer = tokenizers.Tokenizer.from_str(renderer.spec.tokenizer_json)
    encodings = tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return sum(len(encoding.ids) for encoding in encodings)


def render_lengths(renderer: ChatRenderer, conversations: Sequence[Conversation]) -> np.ndarray:
    """Tokens of each conversation, int64 [N]."""
    batches = map(renderer.render_batch, _batched(conversations))
    return np.concatenate([np.diff(batch.offsets) for batch in batches])


def tokenize_mask_pack(renderer: ChatRenderer, conversations: Sequence[Conversation]) -> int:
    """Conversations to packed arrays in memory. Returns the number of tokens."""
    batches = [renderer.render_batch(part) for part in _batched(conversations)]
    lengths = np.concatenate([np.diff(batch.offsets) for batch in batches])
    ids, weights = (
        np.concatenate([getattr(b, name) for b in batches]) for name in ("ids", "weights")
    )
    ends = np.cumsum(lengths)
    starts = ends - lengths
    order, bounds = group_rows(best_fit(lengths, ROW_TOKENS))
    rows = GROUP_TOKENS // ROW_TOKENS
    for first in range(0, len(bounds) - 1, rows):
        packed_ids = np.zeros((rows, ROW_TOKENS), np.int32)
        packed_weights = np.zeros((rows, ROW_TOKENS), np.float32)
        edges = bounds[first : first + rows + 1]
        for row, (a, b) in enumerate(itertools.pairwise(edges.tolist())):
            samples = order[a:b]
            parts = [
                slice(i, j)
                for i, j in zip(starts[samples].tolist(), ends[samples].tolist(), strict=True)
            ]
            filled = sum(part.stop - part.start for part in parts)
            np.concatenate([ids[part] for part in parts], out=packed_ids[row, :filled])
            np.concatenate([weights[part] for part in parts], out=packed_weights[row, :filled])
    return int(lengths.sum())


def recipe_for(path: Path, **data: Any) -> Recipe:
    """A recipe that prepares the rows at a path for the pocket."""
    section = {
        "sources": [str(path)],
        "row_tokens": ROW_TOKENS,
        "heldout_share": 0.01,
        "duplicates": "keep",
        **data,
    }
    return parse_recipe({"name": "bench", "model": {"base": str(POCKET)}, "data": section})


def plain_loop(recipe: Recipe, renderer: ChatRenderer, folder: Path) -> int:
    """File to packed Parquet in this process, without Ray. Returns the number of packed tokens."""
    chunks = cut_chunks(find_files(recipe.data.sources))
    with (
        tempfile.TemporaryDirectory(dir=folder) as scratch,
        tempfile.TemporaryDirectory(dir=folder) as out,
        Assembler(recipe.data, chunks, Path(scratch)) as assembler,
    ):
        for table in in_this_process(chunks, renderer, recipe.data, Benchmarks()):
            assembler.add(table)
        metadata = assembler.finish(Path(out))
    return metadata["train"]["num_tokens"] + metadata["heldout"]["num_tokens"]


def in_this_process(
    chunks: Sequence[Chunk], renderer: ChatRenderer, config: DataConfig, benchmarks: Benchmarks
) -> Iterator[pa.Table]:
    """The work of `ray_tokenize.tokenized` as a loop."""
    tokenizer = ChunkTokenizer(renderer, config, benchmarks)
    for number, chunk in enumerate(chunks):
        yield from tokenizer.tables(number, chunk)


def prepare(recipe: Recipe, folder: Path, tokenize: Any = None) -> PreparedDataset:
    """The prepare stage into a store in a folder; without `tokenize` Ray must be up."""
    return Runner(Store(folder), SILENT).run(prepare_step(Inputs(recipe), tokenize))


def best_of(
    count: int, run: Callable[[], int], clock: Callable[[], float] = time.process_time
) -> float:
    """Units a second of the fastest run: other work on the machine only slows runs down."""
    rates = []
    for _ in range(count):
        start = clock()
        units = run()
        rates.append(units / (clock() - start))
    return max(rates)


def _batched(conversations: Sequence[Conversation]) -> Iterator[Sequence[Conversation]]:
    return (conversations[i : i + BATCH_ROWS] for i in range(0, len(conversations), BATCH_ROWS))
