"""Measures of the data stage, each with its peer beside it: `python -m bench.data [--json] [SECTION ...]`.

    function   tokenize, mask and pack in memory, one core: pocket tokenizer and a 100k-vocabulary BPE trained here
    peers      one example at a time through `datasets.map` and the chat template, as TRL does it; TRL's packing
    ray        the whole stage on Ray Data against the same work in a plain loop
    fill       how full packs are at 4,096 and 8,192 tokens on 50,000 rows
    memory     peak memory of all processes while millions of rows are prepared (not run unless named)

Text is made from the words of Python's own library, as frequent as there; `--alpaca FILE` adds real rows to `fill`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ["RAYON_NUM_THREADS"] = "1"  # a core is a core, in every arm
os.environ["TOKENIZERS_PARALLELISM"] = "false"
os.environ["RAY_worker_niceness"] = "0"  # else other work on the machine slows Ray's workers, and not the plain loop

import numpy as np

from bench._memory import peak_memory
from bench._text import long_vocabulary_tokenizer, write_rows
from pipelines.chat import ChatRenderer, TokenizerSpec
from pipelines.contracts import SILENT, Conversation
from pipelines.data.benchmarks import Benchmarks
from pipelines.data.collect import Collector
from pipelines.data.formats import to_conversation
from pipelines.data.pack import best_fit, group_rows
from pipelines.data.shards import GROUP_TOKENS
from pipelines.data.sources import Chunk, cut_chunks, find_files
from pipelines.data.tokenize import ChunkTokenizer
from pipelines.recipe import DataConfig, Recipe, parse_recipe

POCKET = Path(__file__).resolve().parent.parent / "assets" / "pocket" / "model"
ROW_TOKENS = 4096


@dataclass(frozen=True)
class Measure:
    """One line of the result; `bound` is (at_least or at_most, number), or None for a figure without a bar."""

    bar: str
    value: float
    unit: str
    bound: tuple[str, float] | None = None
    peer: str = ""

    @property
    def holds(self) -> bool:
        if self.bound is None:
            return True
        return self.value >= self.bound[1] if self.bound[0] == "at_least" else self.value <= self.bound[1]


def renderers(folder: Path) -> dict[str, ChatRenderer]:
    """The two tokenizers of the benchmark, on fastokens."""
    template = (POCKET / "chat_template.jinja").read_text()
    spec = TokenizerSpec(long_vocabulary_tokenizer(folder), template, {"eos_token": "<|end|>"})
    made = {"pocket": ChatRenderer.load(str(POCKET)), "100k BPE": ChatRenderer(spec)}
    return {name: renderer.sped_up()[0] for name, renderer in made.items()}


def tokenize_mask_pack(renderer: ChatRenderer, conversations: Sequence[Conversation]) -> int:
    """The function itself: conversations to packed arrays of ids and weights. Returns the number of tokens."""
    batches = [renderer.render_batch(conversations[i : i + 1024]) for i in range(0, len(conversations), 1024)]
    lengths = np.concatenate([np.diff(batch.offsets) for batch in batches])
    ids, weights = (np.concatenate([getattr(b, name) for b in batches]) for name in ("ids", "weights"))
    starts = np.concatenate(([0], np.cumsum(lengths)))
    order, bounds = group_rows(best_fit(lengths, ROW_TOKENS))
    rows = GROUP_TOKENS // ROW_TOKENS
    for first in range(0, len(bounds) - 1, rows):
        packed = np.zeros((2, rows, ROW_TOKENS), np.int32)
        for row, (a, b) in enumerate(
            zip(bounds[first : first + rows], bounds[first + 1 : first + rows + 1], strict=False)
        ):
            at = 0
            for sample in order[a:b]:
                end = at + lengths[sample]
                packed[0, row, at:end] = ids[starts[sample] : starts[sample + 1]]
                packed[1, row, at:end] = weights[starts[sample] : starts[sample + 1]].view(np.int32)
                at = end
    return int(lengths.sum())


def best_of(count: int, run: Callable[[], int], clock: Callable[[], float] = time.process_time) -> float:
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
    for name, renderer in renderers(folder).items():
        rate = best_of(3, lambda renderer=renderer: tokenize_mask_pack(renderer, conversations))
        yield Measure(f"tokenize, mask, pack: {name}", rate / 1e6, "M tokens/s per core", ("at_least", 5))
        bare = ChatRenderer(renderer.spec)
        texts = [bare.text(conversation) for conversation in conversations[:2000]]
        plain = best_of(2, lambda bare=bare, texts=texts: len(bare._encoder.encode(texts).ids))
        yield Measure(f"the same tokenizer alone, tokenizers library: {name}", plain / 1e6, "M tokens/s per core")


def measure_peers(folder: Path, num_rows: int) -> Iterator[Measure]:
    """`datasets.map` with one example a call, ids and mask alone, against our function and our whole way to Parquet."""
    import datasets  # pyright: ignore[reportMissingImports]  (the extra bench)
    from transformers import PreTrainedTokenizerFast
    from trl.data_utils import pack_dataset  # pyright: ignore[reportMissingImports]

    datasets.disable_progress_bars()
    datasets.disable_caching()
    path = write_rows(folder / "peers.jsonl", min(num_rows, 20_000))
    for name, renderer in renderers(folder).items():
        import tokenizers

        backend = tokenizers.Tokenizer.from_str(renderer.spec.tokenizer_json)
        theirs = PreTrainedTokenizerFast(
            tokenizer_object=backend, chat_template=renderer.spec.template, **renderer.spec.named_tokens
        )

        def tokenize(row: dict[str, Any], theirs: Any = theirs) -> dict[str, Any]:
            messages = to_conversation(row).messages()
            found = theirs.apply_chat_template(messages, return_dict=True, return_assistant_tokens_mask=True)
            return {"input_ids": found["input_ids"], "assistant_masks": found["assistant_masks"]}

        rows = datasets.Dataset.from_list([json.loads(line) for line in path.open()][:4000])
        start = time.process_time()
        mapped = rows.map(tokenize, remove_columns=rows.column_names)
        seconds = time.process_time() - start
        their_rate = sum(map(len, mapped["input_ids"])) / seconds
        peer = f"datasets.map per example: {their_rate / 1e6:.2f} M tokens/s"
        conversations = [to_conversation(json.loads(line)) for line in path.open()]
        ours = best_of(3, lambda renderer=renderer, rows=conversations: tokenize_mask_pack(renderer, rows))
        yield Measure(f"tokenize, mask, pack / datasets.map: {name}", ours / their_rate, "x", ("at_least", 12), peer)
        whole = best_of(2, lambda renderer=renderer: plain_loop(recipe_for(path), renderer, folder))
        yield Measure(f"file to packed Parquet, one core: {name}", whole / 1e6, "M tokens/s per core", None, peer)
        packed = pack_dataset(mapped.select_columns(["input_ids"]), seq_length=ROW_TOKENS, strategy="bfd")
        fill = sum(map(len, packed["input_ids"])) / (len(packed) * ROW_TOKENS)
        yield Measure(f"TRL's best-fit packing of the same rows, fill: {name}", 100 * fill, "%")


def recipe_for(path: Path, **data: Any) -> Recipe:
    section = {"sources": [str(path)], "row_tokens": ROW_TOKENS, "heldout_share": 0.01, "duplicates": "keep", **data}
    return parse_recipe({"name": "bench", "model": {"base": str(POCKET)}, "data": section})


def plain_loop(recipe: Recipe, renderer: ChatRenderer, folder: Path) -> int:
    """The whole stage without Ray, in this process. Returns the number of tokens that it packed."""
    chunks = cut_chunks(find_files(recipe.data.sources))
    tokenizer = ChunkTokenizer(renderer, recipe.data)
    with (
        tempfile.TemporaryDirectory(dir=folder) as scratch,
        tempfile.TemporaryDirectory(dir=folder) as out,
        Collector(recipe.data, chunks, Path(scratch)) as collector,
    ):
        for number, chunk in enumerate(chunks):
            for table in tokenizer.tables(number, chunk):
                collector.add(table)
        facts = collector.finish(Path(out))
    return facts["train"]["num_tokens"] + facts["heldout"]["num_tokens"]


def in_this_process(chunks: Sequence[Chunk], renderer: ChatRenderer, config: DataConfig, benchmarks: Benchmarks) -> Any:
    """What the stage asks of Ray Data, as a loop."""
    tokenizer = ChunkTokenizer(renderer, config, benchmarks)
    for number, chunk in enumerate(chunks):
        yield from tokenizer.tables(number, chunk)


def measure_ray(folder: Path, num_rows: int) -> Iterator[Measure]:
    """Wall time of the stage on Ray Data with one worker and with two, against the plain loop; Ray is up before."""
    from jobs.cluster import ray_cluster
    from pipelines.data.dataset import prepare
    from pipelines.storage import Store

    path = write_rows(folder / "ray.jsonl", num_rows)
    start = time.perf_counter()
    prepared = prepare(recipe_for(path), Store(folder / "plain"), SILENT, in_this_process)
    plain = time.perf_counter() - start
    yield Measure(f"plain loop, {num_rows:,} rows", prepared.train.num_tokens / plain / 1e6, "M tokens/s")
    with ray_cluster():
        warm = write_rows(folder / "warm.jsonl", 100)
        prepare(recipe_for(warm, heldout_share=0.2), Store(folder / "warm"), SILENT)
        for workers in (1, 2):
            start = time.perf_counter()
            prepare(recipe_for(path, workers=workers), Store(folder / f"store{workers}"), SILENT)
            seconds = time.perf_counter() - start
            bound = ("at_most", 15.0) if workers == 1 else None
            peer = f"plain loop {plain:.1f} s, Ray Data {seconds:.1f} s"
            yield Measure(f"Ray Data adds, {workers} worker(s)", 100 * (seconds / plain - 1), "%", bound, peer)


def measure_fill(folder: Path, alpaca: Path | None) -> Iterator[Measure]:
    """Fill of 50,000 rows; a real file's rows are repeated to that number."""
    path = write_rows(folder / "fill.jsonl", 50_000)
    if alpaca:
        rows = json.loads(alpaca.read_text())
        path.write_text("".join(json.dumps(rows[i % len(rows)]) + "\n" for i in range(50_000)))
    name = alpaca.name if alpaca else "generated rows"
    renderer = ChatRenderer.load(str(POCKET)).sped_up()[0]
    conversations = [to_conversation(json.loads(line)) for line in path.open()]
    lengths = np.concatenate(
        [
            np.diff(renderer.render_batch(conversations[i : i + 1024]).offsets)
            for i in range(0, len(conversations), 1024)
        ]
    )
    for row_tokens in (4096, 8192):
        fitting = lengths[lengths <= row_tokens]
        start = time.perf_counter()
        packs = int(best_fit(fitting, row_tokens).max()) + 1
        seconds = time.perf_counter() - start
        fill = 100 * fitting.sum() / (packs * row_tokens)
        yield Measure(f"fill at {row_tokens}, {name}", fill, "%", ("at_least", 99.5), f"packed in {seconds:.3f} s")


def measure_memory(folder: Path, num_rows: int) -> Iterator[Measure]:
    """Peak of this process and all below it, shared pages counted once (proportional set size)."""
    from jobs.cluster import ray_cluster
    from pipelines.data.dataset import prepare
    from pipelines.storage import Store

    path = write_rows(folder / "memory.jsonl", num_rows)
    with ray_cluster(), peak_memory() as peaks:
        start = time.perf_counter()
        prepared = prepare(recipe_for(path), Store(folder / "store"), SILENT)
        seconds = time.perf_counter() - start
    note = f"{prepared.train.num_tokens / seconds / 1e6:.1f} M tokens/s, {seconds:.0f} s"
    yield Measure(f"peak of all processes, {num_rows:,} rows", max(peaks["all"]) / 2**30, "GiB", ("at_most", 3.0), note)
    half = len(peaks["driver"]) // 2
    growth = (max(peaks["driver"][half:]) - max(peaks["driver"][: half or 1])) / 2**30
    yield Measure("driver: growth of its peak in the second half", growth, "GiB")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", default=[], help="function, peers, ray, fill, memory")
    parser.add_argument("--json", action="store_true", help="one JSON object a line")
    parser.add_argument("--rows", type=int, default=500_000, help="rows of the ray section")
    parser.add_argument("--memory-rows", type=int, default=2_000_000)
    parser.add_argument("--alpaca", type=Path, help="a JSON array of alpaca rows for the fill section")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        sections = {
            "function": lambda: measure_function(folder, args.rows),
            "peers": lambda: measure_peers(folder, args.rows),
            "ray": lambda: measure_ray(folder, args.rows),
            "fill": lambda: measure_fill(folder, args.alpaca),
            "memory": lambda: measure_memory(folder, args.memory_rows),
        }
        held = True
        for section in args.sections or ["function", "peers", "ray", "fill"]:
            for measure in sections[section]():
                held &= measure.holds
                show(measure, args.json)
    return 0 if held else 1


def show(measure: Measure, as_json: bool) -> None:
    if as_json:
        line: dict[str, Any] = {"bar": measure.bar, "value": round(measure.value, 4), "unit": measure.unit}
        line |= {measure.bound[0]: measure.bound[1]} if measure.bound else {}
        print(json.dumps(line | ({"peer": measure.peer} if measure.peer else {})), flush=True)
        return
    bound = f"{measure.bound[0].replace('_', ' ')} {measure.bound[1]:g}" if measure.bound else ""
    verdict = ("ok" if measure.holds else "MISSED") if measure.bound else ""
    print(f"{measure.bar:58} {measure.value:10.2f} {measure.unit:20} {bound:14} {verdict:7} {measure.peer}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
