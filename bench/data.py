"""Measures of the data stage next to its peers: `python -m bench.data [--json] [SECTION ...]`.

    function   tokenize, mask and pack in memory on one core, with the pocket's tokenizer and with a
               100k-vocabulary BPE that is trained here
    peers      the same rows one at a time through `datasets.map` and the chat template, as TRL does
               it, and through ours; then both ways to packed Parquet
    ray        the stage on Ray Data against the same work in a plain loop
    feed       the wait of a trainer that takes packs of 16,384 tokens four times as fast as an H100
    fill       how full packs are at 4,096 and 8,192 tokens on 50,000 rows
    memory     peak memory of all processes while millions of rows are prepared (only when named)
    near       the same with near-duplicates dropped, which nearly all rows are (only when named)

The text has the words of Python's own library with their frequencies, in rows of Alpaca's lengths.
With `--alpaca FILE`, `fill` repeats the rows of that file to 50,000.
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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"  # every arm uses one core
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# Without this, other work on the machine slows Ray's workers but not the plain loop.
os.environ["RAY_worker_niceness"] = "0"

import numpy as np

from bench._data_arms import (
    BATCH_ROWS,
    POCKET,
    ROW_TOKENS,
    best_of,
    in_this_process,
    num_tokens_alone,
    plain_loop,
    prepare,
    recipe_for,
    render_lengths,
    renderers,
    split_as_llama3,
    tokenize_mask_pack,
)
from bench._measure import Measure, show
from bench._memory import peak_memory
from bench._peers import map_and_pack
from bench._text import write_rows
from pipelines.chat import ChatRenderer
from pipelines.data.convert.row_formats import to_conversation
from pipelines.packed.pack import best_fit

PEER_ROWS, MAPPED_ROWS = 20_000, 4000


def measure_function(folder: Path, num_rows: int) -> Iterator[Measure]:
    """The in-memory function, and the tokenizer alone."""
    path = write_rows(folder / "function.jsonl", min(num_rows, 20_000))
    conversations = [to_conversation(json.loads(line)) for line in path.open()]
    tokenizers = renderers(folder)
    tokenizers["100k BPE, words cut as Llama-3 does"] = split_as_llama3(tokenizers["100k BPE"])
    gc.freeze()  # as the stage's workers do: the collector need not visit libraries and rows
    for name, renderer in tokenizers.items():
        rate = best_of(3, lambda renderer=renderer: tokenize_mask_pack(renderer, conversations))
        yield Measure(
            f"tokenize, mask, pack: {name}", rate / 1e6, "M tokens/s per core", ("at_least", 5)
        )
        bare = ChatRenderer(renderer.spec)
        texts = [bare.text(conversation) for conversation in conversations[:2000]]
        plain = best_of(2, lambda bare=bare, texts=texts: num_tokens_alone(bare, texts))
        yield Measure(
            f"the same tokenizer alone, tokenizers library: {name}",
            plain / 1e6,
            "M tokens/s per core",
        )


def measure_peers(folder: Path, num_rows: int) -> Iterator[Measure]:
    """From messages in memory to ids and masks, then from a file to packed Parquet."""
    path = write_rows(folder / "peers.jsonl", min(num_rows, PEER_ROWS))
    rows = [{"messages": to_conversation(json.loads(line)).messages()} for line in path.open()]
    with open(folder / "messages.jsonl", "w") as out:
        out.writelines(json.dumps(row) + "\n" for row in rows)
    for name, renderer in renderers(folder).items():
        # A first small call imports the peer's libraries.
        map_and_pack(renderer.spec, rows[:8], ROW_TOKENS, folder / "theirs.parquet")
        gc.freeze()  # for both arms
        theirs = map_and_pack(
            renderer.spec, rows[:MAPPED_ROWS], ROW_TOKENS, folder / "theirs.parquet"
        )

        def masked(renderer: ChatRenderer = renderer) -> int:
            conversations = (to_conversation(row) for row in rows)
            batches = [
                renderer.render_batch(batch)
                for batch in iter(lambda: list(itertools.islice(conversations, BATCH_ROWS)), [])
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
        packed = best_of(
            2, lambda renderer=renderer, recipe=recipe: plain_loop(recipe, renderer, folder)
        )
        peer = f"datasets.map, TRL's best-fit, to_parquet: {theirs.packed / 1e6:.2f} M tokens/s"
        yield Measure(
            f"file to packed Parquet: {name}", packed / 1e6, "M tokens/s per core", None, peer
        )
        yield Measure(
            f"TRL's best-fit packing of the same rows, fill: {name}", 100 * theirs.fill, "%"
        )


def measure_ray(folder: Path, num_rows: int) -> Iterator[Measure]:
    """Wall time of the stage on Ray Data with one and two workers, against the plain loop.

    Ray is started before.
    """
    from jobs.cluster.ray import ray_cluster

    path = write_rows(folder / "ray.jsonl", num_rows)
    start = time.perf_counter()
    prepared = prepare(recipe_for(path), folder / "plain", in_this_process)
    plain = time.perf_counter() - start
    yield Measure(
        f"plain loop, {num_rows:,} rows", prepared.train.num_tokens / plain / 1e6, "M tokens/s"
    )
    with ray_cluster():
        warm = write_rows(folder / "warm.jsonl", 100)
        prepare(recipe_for(warm, heldout_share=0.2), folder / "warm")
        for workers in (1, 2):
            start = time.perf_counter()
            prepare(recipe_for(path, workers=workers), folder / f"store{workers}")
            seconds = time.perf_counter() - start
            bound = ("at_most", 15.0) if workers == 1 else None
            peer = f"plain loop {plain:.1f} s, Ray Data {seconds:.1f} s"
            yield Measure(
                f"Ray Data adds, {workers} worker(s)", 100 * (seconds / plain - 1), "%", bound, peer
            )


def measure_feed(folder: Path, num_rows: int = 320, step_s: float = 0.2) -> Iterator[Measure]:
    """Share of the time that a consumer waits for the rows of ten tasks, without the first row."""
    from bench.train_ray import random_dataset
    from jobs.cluster.ray import ray_cluster
    from pipelines.core.progress import SILENT
    from pipelines.packed.feed import RowFeed
    from pipelines.steps.runner import Runner
    from pipelines.storage import Store

    store = Store(folder / "feed")
    prepared = Runner(store, SILENT).run(random_dataset(16_384, num_rows, 128_256))
    waits: list[float] = []
    with ray_cluster():
        batches = RowFeed(store.local_dir(prepared.ref)).batches(
            np.random.default_rng(0).permutation(num_rows), 1
        )
        for started in iter(time.perf_counter, None):
            if next(batches, None) is None:
                break
            waits.append(time.perf_counter() - started)
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
    lengths = render_lengths(renderer, conversations)
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
    """Peak memory (proportional set size) of this process and its descendants while preparing.

    Duplicates are dropped and one quality filter is set.
    """
    from jobs.cluster.ray import ray_cluster

    path = write_rows(folder / "memory.jsonl", num_rows)
    recipe = recipe_for(path, duplicates="drop", keep=["answer_chars >= 2"], **data)
    with ray_cluster(), peak_memory() as peaks:
        start = time.perf_counter()
        prepared = prepare(recipe, folder / "store")
        seconds = time.perf_counter() - start
    counts = ", ".join(f"{name} {count:,}" for name, count in prepared.counts.items() if count)
    label = f"{num_rows:,} rows{', near-duplicates' if data else ''}"
    note = f"{seconds:.0f} s; {counts}"
    yield Measure(
        f"peak of all processes, {label}", max(peaks["all"]) / 2**30, "GiB", ("at_most", 3.0), note
    )
    yield Measure(f"peak of the driver, {label}", max(peaks["driver"]) / 2**30, "GiB")
    half = len(peaks["driver"]) // 2
    growth = (max(peaks["driver"][half:]) - max(peaks["driver"][: half or 1])) / 2**30
    yield Measure("driver: growth of its peak in the second half", growth, "GiB")


def main() -> int:
    """Run the chosen sections; 1 when a target is missed."""
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
        chosen = args.sections or ["function", "peers", "ray", "feed", "fill"]
        all_met = show((m for section in chosen for m in sections[section]()), args.json)
    return 0 if all_met else 1


if __name__ == "__main__":
    sys.exit(main())
