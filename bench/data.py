"""Measures of the data stage, each with its peer beside it: `python -m bench.data [--json] [SECTION ...]`.

    function   tokenize, mask and pack in memory, one core: pocket tokenizer and a 100k-vocabulary BPE trained here
    peers      the same rows one at a time through `datasets.map` and the chat template, as TRL does it, and through ours,
               then both ways to packed Parquet
    ray        the whole stage on Ray Data against the same work in a plain loop
    feed       what a trainer waits for packs of 16,384 tokens that it takes four times as fast as an H100
    fill       how full packs are at 4,096 and 8,192 tokens on 50,000 rows
    memory     peak memory of all processes while millions of rows are prepared (not run unless named)
    near       the same with near-duplicates dropped: nearly all rows are (not run unless named)

Text is made from the words of Python's own library, as frequent as there, in rows of Alpaca's lengths; with `--alpaca FILE`
`fill` repeats that file's rows to 50,000 instead.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"  # a core is a core, in every arm
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAY_worker_niceness"] = (
    "0"  # else other work on the machine slows Ray's workers, and not the plain loop
)

import numpy as np

from bench._measure import Measure, show
from bench._memory import peak_memory
from bench._peers import map_and_pack
from bench._text import long_vocabulary_tokenizer, write_rows
from pipelines.chat import ChatRenderer, TokenizerSpec
from pipelines.config.recipe import Recipe, parse_recipe
from pipelines.config.schema import DataConfig
from pipelines.core.conversation import Conversation
from pipelines.core.progress import SILENT
from pipelines.data.assemble import Assembler
from pipelines.data.convert.decontamination import Benchmarks
from pipelines.data.convert.row_formats import to_conversation
from pipelines.data.read.chunks import Chunk, cut_chunks
from pipelines.data.tokenize import ChunkTokenizer
from pipelines.packed.pack import best_fit, group_rows
from pipelines.packed.writer import GROUP_TOKENS
from pipelines.sources.files import find_files

POCKET = Path(__file__).resolve().parent.parent / "assets" / "pocket" / "model"
ROW_TOKENS = 4096
PEER_ROWS, MAPPED_ROWS = 20_000, 4000


def renderers(folder: Path) -> dict[str, ChatRenderer]:
    """The two tokenizers of the benchmark, on fastokens."""
    template = (POCKET / "chat_template.jinja").read_text()
    spec = TokenizerSpec(long_vocabulary_tokenizer(folder), template, {"eos_token": "<|end|>"})
    made = {"pocket": ChatRenderer.load(str(POCKET)), "100k BPE": ChatRenderer(spec)}
    return {name: renderer.with_fastokens()[0] for name, renderer in made.items()}


LLAMA3_WORDS = (  # fastokens knows this one by heart; that of the benchmark's own tokenizer, but for a part the same, it does not
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def split_as_llama3(renderer: ChatRenderer) -> ChatRenderer:
    """The same vocabulary behind the published expression that cuts words for Llama-3."""
    data = json.loads(renderer.spec.tokenizer_json)
    data["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = LLAMA3_WORDS
    return ChatRenderer(replace(renderer.spec, tokenizer_json=json.dumps(data))).with_fastokens()[0]


def tokenize_mask_pack(renderer: ChatRenderer, conversations: Sequence[Conversation]) -> int:
    """The function itself: conversations to packed arrays of ids and weights. Returns the number of tokens."""
    batches = [
        renderer.render_batch(conversations[i : i + 1024])
        for i in range(0, len(conversations), 1024)
    ]
    lengths = np.concatenate([np.diff(batch.offsets) for batch in batches])
    ids, weights = (
        np.concatenate([getattr(b, name) for b in batches]) for name in ("ids", "weights")
    )
    ends = np.cumsum(lengths)
    starts = ends - lengths
    order, bounds = group_rows(best_fit(lengths, ROW_TOKENS))
    rows = GROUP_TOKENS // ROW_TOKENS
    for first in range(0, len(bounds) - 1, rows):
        packed_ids, packed_weights = (
            np.zeros((rows, ROW_TOKENS), np.int32),
            np.zeros((rows, ROW_TOKENS), np.float32),
        )
        edges = bounds[first : first + rows + 1]
        for row, (a, b) in enumerate(itertools.pairwise(edges.tolist())):
            parts = [
                slice(i, j)
                for i, j in zip(starts[order[a:b]].tolist(), ends[order[a:b]].tolist(), strict=True)
            ]
            filled = sum(part.stop - part.start for part in parts)
            np.concatenate([ids[part] for part in parts], out=packed_ids[row, :filled])
            np.concatenate([weights[part] for part in parts], out=packed_weights[row, :filled])
    return int(lengths.sum())


def best_of(
    count: int, run: Callable[[], int], clock: Callable[[], float] = time.process_time
) -> float:
    """Units a second of the fastest of some runs: the machine's other work only ever slows a run down."""
    rates = []
    for _ in range(count):
        start = clock()
        done = run()
        rates.append(done / (clock() - start))
    return max(rates)


def measure_function(folder: Path, num_rows: int) -> Iterator[Measure]:
    path = write_rows(folder / "function.jsonl", min(num_rows, 20_000))
    conversations = [to_conversation(json.loads(line)) for line in path.open()]
    found = renderers(folder)
    found["100k BPE, words cut as Llama-3 does"] = split_as_llama3(found["100k BPE"])
    gc.freeze()  # as the stage's workers do: do not walk through libraries and rows again and again
    for name, renderer in found.items():
        rate = best_of(3, lambda renderer=renderer: tokenize_mask_pack(renderer, conversations))
        yield Measure(
            f"tokenize, mask, pack: {name}", rate / 1e6, "M tokens/s per core", ("at_least", 5)
        )
        bare = ChatRenderer(renderer.spec)
        texts = [bare.text(conversation) for conversation in conversations[:2000]]
        plain = best_of(2, lambda bare=bare, texts=texts: len(bare.encoder.encode(texts).ids))
        yield Measure(
            f"the same tokenizer alone, tokenizers library: {name}",
            plain / 1e6,
            "M tokens/s per core",
        )


def measure_peers(folder: Path, num_rows: int) -> Iterator[Measure]:
    """From the same rows in memory, lists of messages, to ids and masks; then from rows to packed Parquet."""
    path = write_rows(folder / "peers.jsonl", min(num_rows, PEER_ROWS))
    rows = [{"messages": to_conversation(json.loads(line)).messages()} for line in path.open()]
    with open(folder / "messages.jsonl", "w") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    for name, renderer in renderers(folder).items():
        map_and_pack(
            renderer.spec, rows[:8], ROW_TOKENS, folder / "theirs.parquet"
        )  # its libraries are imported before
        gc.freeze()  # for both arms
        theirs = map_and_pack(
            renderer.spec, rows[:MAPPED_ROWS], ROW_TOKENS, folder / "theirs.parquet"
        )

        def masked(renderer: ChatRenderer = renderer) -> int:
            talks = (to_conversation(row) for row in rows)
            batches = [
                renderer.render_batch(batch)
                for batch in iter(lambda: list(itertools.islice(talks, 1024)), [])
            ]
            return sum(len(batch.ids) for batch in batches)

        ours, peer = (
            best_of(3, masked),
            f"datasets.map per example: {theirs.masked / 1e6:.2f} M tokens/s",
        )
        yield Measure(
            f"rows to ids and masks: {name}", ours / 1e6, "M tokens/s per core", None, peer
        )
        yield Measure(
            f"the same / datasets.map: {name}", ours / theirs.masked, "x", ("at_least", 12), peer
        )
        recipe = recipe_for(folder / "messages.jsonl")
        whole = best_of(
            2, lambda renderer=renderer, recipe=recipe: plain_loop(recipe, renderer, folder)
        )
        peer = f"datasets.map, TRL's best-fit, to_parquet: {theirs.packed / 1e6:.2f} M tokens/s"
        yield Measure(
            f"file to packed Parquet: {name}", whole / 1e6, "M tokens/s per core", None, peer
        )
        yield Measure(
            f"TRL's best-fit packing of the same rows, fill: {name}", 100 * theirs.fill, "%"
        )


def recipe_for(path: Path, **data: Any) -> Recipe:
    section = {
        "sources": [str(path)],
        "row_tokens": ROW_TOKENS,
        "heldout_share": 0.01,
        "duplicates": "keep",
        **data,
    }
    return parse_recipe({"name": "bench", "model": {"base": str(POCKET)}, "data": section})


def plain_loop(recipe: Recipe, renderer: ChatRenderer, folder: Path) -> int:
    """The whole stage without Ray, in this process. Returns the number of tokens that it packed."""
    chunks = cut_chunks(find_files(recipe.data.sources))
    tokenizer = ChunkTokenizer(renderer, recipe.data)
    with (
        tempfile.TemporaryDirectory(dir=folder) as scratch,
        tempfile.TemporaryDirectory(dir=folder) as out,
        Assembler(recipe.data, chunks, Path(scratch)) as collector,
    ):
        for number, chunk in enumerate(chunks):
            for table in tokenizer.tables(number, chunk):
                collector.add(table)
        facts = collector.finish(Path(out))
    return facts["train"]["num_tokens"] + facts["heldout"]["num_tokens"]


def in_this_process(
    chunks: Sequence[Chunk], renderer: ChatRenderer, config: DataConfig, benchmarks: Benchmarks
) -> Any:
    """What the stage asks of Ray Data, as a loop."""
    tokenizer = ChunkTokenizer(renderer, config, benchmarks)
    for number, chunk in enumerate(chunks):
        yield from tokenizer.tables(number, chunk)


def measure_ray(folder: Path, num_rows: int) -> Iterator[Measure]:
    """Wall time of the stage on Ray Data with one worker and with two, against the plain loop; Ray is up before."""
    from jobs.cluster.ray import ray_cluster
    from pipelines.data.stage import prepare
    from pipelines.storage import Store

    path = write_rows(folder / "ray.jsonl", num_rows)
    start = time.perf_counter()
    prepared = prepare(recipe_for(path), Store(folder / "plain"), SILENT, in_this_process)
    plain = time.perf_counter() - start
    yield Measure(
        f"plain loop, {num_rows:,} rows", prepared.train.num_tokens / plain / 1e6, "M tokens/s"
    )
    with ray_cluster():
        warm = write_rows(folder / "warm.jsonl", 100)
        prepare(recipe_for(warm, heldout_share=0.2), Store(folder / "warm"), SILENT)
        for workers in (1, 2):
            start = time.perf_counter()
            prepare(recipe_for(path, workers=workers), Store(folder / f"store{workers}"), SILENT)
            seconds = time.perf_counter() - start
            bound = ("at_most", 15.0) if workers == 1 else None
            peer = f"plain loop {plain:.1f} s, Ray Data {seconds:.1f} s"
            yield Measure(
                f"Ray Data adds, {workers} worker(s)", 100 * (seconds / plain - 1), "%", bound, peer
            )


def measure_feed(folder: Path, num_rows: int = 320, step_s: float = 0.2) -> Iterator[Measure]:
    """Share of the time that one consumer waits over ten of the feed's tasks, the first row of all left out."""
    from bench.train_ray import prepared_rows
    from jobs.cluster.ray import ray_cluster
    from pipelines.packed.feed import RowFeed
    from pipelines.storage import Store

    store = Store(folder / "feed")
    prepared, waits = prepared_rows(store, 16_384, num_rows, 128_256), []
    with ray_cluster():
        batches = RowFeed(store.local_dir(prepared.ref)).batches(
            np.random.default_rng(0).permutation(num_rows), 1
        )
        for asked in iter(time.perf_counter, None):
            if next(batches, None) is None:
                break
            waits.append(time.perf_counter() - asked)
            time.sleep(step_s)
    waited, steps = sum(waits[1:]), step_s * (num_rows - 1)
    assert len(waits) == num_rows
    yield Measure(
        "feed: share of the time waiting", waited / (waited + steps), bound=("at_most", 0.01)
    )
    yield Measure("feed: longest wait for a row", 1e3 * max(waits[1:]), "ms")


def measure_fill(folder: Path, alpaca: Path | None) -> Iterator[Measure]:
    """Fill of 50,000 rows; a real file's rows are repeated to that number."""
    path = write_rows(folder / "fill.jsonl", 50_000)
    if alpaca:
        rows = json.loads(alpaca.read_text())
        path.write_text("".join(json.dumps(rows[i % len(rows)]) + "\n" for i in range(50_000)))
    name = alpaca.name if alpaca else "generated rows"
    renderer = ChatRenderer.load(str(POCKET)).with_fastokens()[0]
    conversations = [to_conversation(json.loads(line)) for line in path.open()]
    batches = [
        renderer.render_batch(conversations[i : i + 1024])
        for i in range(0, len(conversations), 1024)
    ]
    lengths = np.concatenate([np.diff(batch.offsets) for batch in batches])
    for row_tokens in (4096, 8192):
        fitting = lengths[lengths <= row_tokens]
        start = time.perf_counter()
        packs = int(best_fit(fitting, row_tokens).max()) + 1
        seconds = time.perf_counter() - start
        fill = 100 * fitting.sum() / (packs * row_tokens)
        yield Measure(
            f"fill at {row_tokens}, {name}",
            fill,
            "%",
            ("at_least", 99.5),
            f"packed in {seconds:.3f} s",
        )


def measure_memory(folder: Path, num_rows: int, **data: Any) -> Iterator[Measure]:
    """Peak of this process and all below it, shared pages counted once (proportional set size). Duplicates are dropped and
    a rule is asked.
    """
    from jobs.cluster.ray import ray_cluster
    from pipelines.data.stage import prepare
    from pipelines.storage import Store

    path = write_rows(folder / "memory.jsonl", num_rows)
    recipe = recipe_for(path, duplicates="drop", keep=["answer_chars >= 2"], **data)
    with ray_cluster(), peak_memory() as peaks:
        start = time.perf_counter()
        prepared = prepare(recipe, Store(folder / "store"), SILENT)
        seconds = time.perf_counter() - start
    counts = ", ".join(f"{name} {count:,}" for name, count in prepared.counts.items() if count)
    what = f"{num_rows:,} rows{', near-duplicates' if data else ''}"
    note = f"{seconds:.0f} s; {counts}"
    yield Measure(
        f"peak of all processes, {what}", max(peaks["all"]) / 2**30, "GiB", ("at_most", 3.0), note
    )
    yield Measure(f"peak of the driver, {what}", max(peaks["driver"]) / 2**30, "GiB")
    half = len(peaks["driver"]) // 2
    growth = (max(peaks["driver"][half:]) - max(peaks["driver"][: half or 1])) / 2**30
    yield Measure("driver: growth of its peak in the second half", growth, "GiB")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "sections", nargs="*", default=[], help="function, peers, ray, feed, fill, memory, near"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--rows", type=int, default=500_000, help="rows of the ray section")
    parser.add_argument("--memory-rows", type=int, default=2_000_000)
    parser.add_argument(
        "--alpaca", type=Path, help="a JSON array of alpaca rows for the fill section"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        sections = {
            "function": lambda: measure_function(folder, args.rows),
            "peers": lambda: measure_peers(folder, args.rows),
            "ray": lambda: measure_ray(folder, args.rows),
            "feed": lambda: measure_feed(folder),
            "fill": lambda: measure_fill(folder, args.alpaca),
            "memory": lambda: measure_memory(folder, args.memory_rows),
            "near": lambda: measure_memory(folder, args.memory_rows, near_duplicates=0.9),
        }
        wanted = args.sections or ["function", "peers", "ray", "feed", "fill"]
        held = show((measure for section in wanted for measure in sections[section]()), args.json)
    return 0 if held else 1


if __name__ == "__main__":
    sys.exit(main())
