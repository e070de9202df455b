from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from pipelines.chat import ChatRenderer
from pipelines.config.recipe import Recipe, parse_recipe
from pipelines.core.artifacts import PreparedDataset
from pipelines.core.errors import UserError
from pipelines.core.progress import SILENT
from pipelines.packed.feed import RowFeed
from pipelines.packed.format import HELDOUT_SAMPLES
from pipelines.packed.reader import PackedSample, RowReader, as_batch, read_heldout_samples
from pipelines.storage import Store
from tests.stages import prepare
from tests.unit.data.datasets import long_talk, talk, write_jsonl


def recipe_for(base: str, *paths: Path, **data) -> Recipe:
    section = {"sources": [str(p) for p in paths], "row_tokens": 256, "heldout_share": 0.2, **data}
    return parse_recipe({"name": "t", "model": {"base": base}, "data": section})


def write_rows(path: Path, numbers: range) -> Path:
    rows = [{"instruction": f"Say {i}", "input": "", "output": f"It is {i}, é."} for i in numbers]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def samples_of(store: Store, prepared: PreparedDataset, split: str) -> dict[str, PackedSample]:
    """Each sample of a split by its id, read back from the packed rows."""
    reader = RowReader(store.local_dir(prepared.ref), split)
    batch = as_batch(reader.read(np.arange(reader.num_rows)))
    for weights, lengths in zip(batch["loss_weights"], batch["sample_lengths"], strict=True):
        assert not weights[lengths.sum() :].any()
    return {sample.sample_id: sample for sample in reader.samples()}


@pytest.fixture(scope="module")
def prepared_once(ray_cluster, pocket_base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("prepared")
    store = Store(folder / "store")
    recipe = recipe_for(pocket_base, write_rows(folder / "rows.jsonl", range(200)))
    return folder, store, recipe, prepare(recipe, store, SILENT)


def test_every_sample_is_packed_once_and_counts_add_up(prepared_once, pocket_base):
    _, store, _, prepared = prepared_once
    counts = prepared.counts
    assert counts["read"] == 200 == counts["train"] + counts["heldout"]
    renderer = ChatRenderer.load(pocket_base)
    texts = {
        renderer.decode(sample.input_ids.tolist(), skip_special_tokens=False)
        for split in ("train", "heldout")
        for sample in samples_of(store, prepared, split).values()
    }
    assert texts == {f"<|user|>Say {i}<|assistant|>It is {i}, é.<|end|>" for i in range(200)}
    assert prepared.heldout.num_samples > 10


def test_the_manifest_names_files_tokenizer_template_and_recipe(prepared_once):
    import hashlib

    folder, store, recipe, prepared = prepared_once
    artifact = store.by_id("prepared", prepared.ref.key)
    (source,) = artifact.metadata["sources"]
    assert source["file"] == "rows.jsonl"
    assert source["sha256"] == hashlib.sha256((folder / "rows.jsonl").read_bytes()).hexdigest()
    assert artifact.metadata["recipe_digest"] == recipe.digest
    assert {"sources", "tokenizer", "template"} <= prepared.ref.parents.keys()


def test_heldout_samples_have_prompt_and_reference(prepared_once, pocket_base):
    _, store, _, prepared = prepared_once
    table = pq.read_table(store.local_dir(prepared.ref) / HELDOUT_SAMPLES)
    assert table.num_rows == prepared.heldout.num_samples
    row = table.to_pylist()[0]
    number = row["prompt"].removeprefix("Say ")
    assert row["reference"] == f"It is {number}, é."
    assert json.loads(row["messages"]) == [{"role": "user", "content": f"Say {number}"}]
    text = ChatRenderer.load(pocket_base).decode(row["prompt_ids"], skip_special_tokens=False)
    assert text == f"<|user|>Say {number}<|assistant|>"


def test_samples_are_labeled_with_cluster_source_slice_and_split(
    pocket_base, store, tmp_path, serially
):
    """Conversations with the same first user message share a cluster, also across splits."""
    rows = [talk(("user", f"ask {i}"), ("assistant", f"answer {i}")) for i in range(4)]
    more = [
        talk(("system", "s"), ("user", " ASK  1"), ("assistant", "another answer")),
        talk(("user", "ask 1"), ("assistant", "answer 1"), ("user", "b"), ("assistant", "c")),
    ]
    heldout = [talk(("system", "t"), ("user", "ask 2"), ("assistant", "held out"))]
    sources = [
        {"path": str(write_jsonl(tmp_path / f"{name}.jsonl", part)), "split": split}
        for name, part, split in (
            ("a", rows, "train"),
            ("b", more, "train"),
            ("c", heldout, "heldout"),
        )
    ]
    recipe = parse_recipe(
        {
            "name": "t",
            "model": {"base": pocket_base},
            "data": {"sources": sources, "row_tokens": 64},
        }
    )
    prepared = prepare(recipe, store, SILENT, serially)
    train = samples_of(store, prepared, "train").values()
    assert sorted(sample.source for sample in train) == [0, 0, 0, 0, 1, 1]
    assert {(sample.slice, sample.split) for sample in train} == {("", "train")}
    by_cluster = Counter(sample.cluster_id for sample in train)
    assert sorted(by_cluster.values()) == [1, 1, 1, 3]
    (sample,) = samples_of(store, prepared, "heldout").values()
    assert (sample.source, sample.slice, sample.split) == (2, "", "select")
    assert by_cluster[sample.cluster_id] == 1
    columns = ("sample_id", "cluster_id", "source", "slice", "split", "reference")
    (row,) = read_heldout_samples(store.local_dir(prepared.ref), columns)
    assert tuple(row.values()) == (sample.sample_id, sample.cluster_id, 2, "", "select", "held out")


def test_pieces_of_a_split_conversation_share_its_cluster(pocket_base, store, tmp_path, serially):
    path = write_jsonl(tmp_path / "rows.jsonl", [long_talk(0, 12), long_talk(1, 1)])
    recipe = recipe_for(pocket_base, path, too_long="split", heldout_share=0)
    prepared = prepare(recipe, store, SILENT, serially)
    clusters = Counter(s.cluster_id for s in samples_of(store, prepared, "train").values())
    assert sorted(clusters.values()) == [1, prepared.counts["pieces"]]


def test_the_same_content_at_another_path_is_found_and_not_rebuilt(prepared_once, tmp_path):
    folder, store, recipe, prepared = prepared_once
    shutil.copy(folder / "rows.jsonl", tmp_path / "other.jsonl")
    notes = []

    class Notes:
        bar = SILENT.bar

        def note(self, text: str) -> None:
            notes.append(text)

    again = prepare(recipe_for(recipe.model.base, tmp_path / "other.jsonl"), store, Notes())
    assert again == prepared
    assert "found" in notes[0]


def test_adding_rows_never_moves_old_rows(prepared_once, tmp_path):
    _, store, recipe, prepared = prepared_once
    more = recipe_for(recipe.model.base, write_rows(tmp_path / "rows.jsonl", range(300)))
    grown = prepare(more, store, SILENT)
    for split in ("train", "heldout"):
        assert samples_of(store, prepared, split).keys() < samples_of(store, grown, split).keys()


def test_the_feed_gives_rows_in_the_order_asked_for(prepared_once):
    _, store, _, prepared = prepared_once
    feed = RowFeed(store.local_dir(prepared.ref), "train")
    assert feed.num_rows == prepared.train.num_rows
    order = np.arange(feed.num_rows)[::-1]
    straight = {r: b for r, b in enumerate(feed.batches(np.arange(feed.num_rows), 1))}
    got = list(feed.batches(order, 3, start=2))
    ids = np.concatenate([batch["input_ids"] for batch in got])
    assert ids.shape == (feed.num_rows - 2, 256) and ids.dtype == np.int32
    for row, number in zip(ids, order[2:], strict=True):
        assert (row == straight[number]["input_ids"][0]).all()
    assert got[0]["sample_ids"][0] == straight[order[2]]["sample_ids"][0]
    assert [len(b["input_ids"]) for b in got[:-1]] == [3] * (len(got) - 1)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("empty.jsonl", "", "no row in it"),
        ("rows.txt", "x", "unknown file type .txt"),
        ("keys.jsonl", '{"foo": 1}\n', r"its only row cannot be used: unknown format"),
        ("bad.jsonl", '{"instruction": \n', r"bad.jsonl:2: not JSON: Expecting value"),
        (
            "twice.csv",
            "prompt,prompt\n",
            "twice.csv: the header names 'prompt' twice; rename one of the columns$",
        ),
        ("rows.csv", "PK\x03\x04", "rows.csv: is a ZIP archive, not a file of rows; unpack it"),
    ],
)
def test_an_unusable_source_is_refused_in_one_line(
    ray_cluster, pocket_base, store, tmp_path, name, text, message
):
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        prepare(recipe_for(pocket_base, tmp_path / name), store, SILENT)
    assert "\n" not in str(error.value) and not store.list("prepared")


def test_a_missing_source_names_the_nearest(pocket_base, store, tmp_path):
    write_rows(tmp_path / "alpaca.jsonl", range(3))
    with pytest.raises(
        UserError,
        match=r"data.sources.0.path=.*alpacca.jsonl: no such file; did you mean .*alpaca.jsonl",
    ):
        prepare(recipe_for(pocket_base, tmp_path / "alpacca.jsonl"), store, SILENT)


def test_a_missing_base_names_its_key(store, tmp_path):
    path = write_rows(tmp_path / "rows.jsonl", range(3))
    with pytest.raises(UserError, match="model.base=/nowhere/model: no such folder"):
        prepare(recipe_for("/nowhere/model", path), store, SILENT)
