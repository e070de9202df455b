"""Plain text for continued pretraining, from its rows to the loss of a held-out part."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.graphs.run import run_recipe
from pipelines.chat import ChatRenderer
from pipelines.config.recipe import Recipe, parse_recipe
from pipelines.core.artifacts import PreparedDataset
from pipelines.core.errors import UserError
from pipelines.core.progress import SILENT
from pipelines.data.audit.problems import problems_of
from pipelines.eval.heldout import load_heldout
from pipelines.packed.reader import PackedSample, RowReader
from pipelines.steps.inputs import Inputs
from pipelines.steps.runner import Runner
from pipelines.storage import Store
from tests.stages import prepare, serial_tokenize

pytestmark = pytest.mark.trials
TEXTS = [f"Tale {i} of {i * 7}: " + "there was a king and a queen. " * (i % 5) for i in range(40)]
LONG = "Chapter. " + " ".join(f"word{i}" for i in range(300))


def prepared_texts(
    base: str, folder: Path, texts: list[str], **recipe: Any
) -> tuple[Recipe, Store, PreparedDataset]:
    rows = "".join(json.dumps({"text": text}) + "\n" for text in texts)
    (folder / "texts.jsonl").write_text(rows)
    data = {"sources": [str(folder / "texts.jsonl")], "row_tokens": 128, **recipe.pop("data", {})}
    parsed = parse_recipe({"name": "t", "model": {"base": base}, "data": data, **recipe})
    store = Store(folder / "store")
    return parsed, store, prepare(parsed, store, SILENT, serial_tokenize)


def samples_of(store: Store, dataset: PreparedDataset, split: str) -> list[PackedSample]:
    return list(RowReader(store.local_dir(dataset.ref), split).samples())


def test_texts_are_split_by_their_content_and_every_token_is_trained(
    pocket_base: str, tmp_path: Path
) -> None:
    _, store, dataset = prepared_texts(pocket_base, tmp_path, TEXTS, data={"heldout_share": 0.3})
    assert dataset.kind == "text"
    assert 0 < dataset.counts["heldout"] < 20
    assert dataset.counts["train"] + dataset.counts["heldout"] == len(TEXTS)
    renderer = ChatRenderer.load(pocket_base)
    seen = []
    for split in ("train", "heldout"):
        for sample in samples_of(store, dataset, split):
            assert sample.loss_weights.all()
            assert sample.input_ids[-1] in renderer.stop_ids
            seen.append(renderer.decode(sample.input_ids))
            assert seen[-1] == TEXTS[sample.line - 1]
    assert sorted(seen) == sorted(TEXTS)


def test_a_long_text_is_split_into_pieces_that_train_each_token_once(
    pocket_base: str, tmp_path: Path
) -> None:
    data = {"heldout_share": 0, "too_long": "split"}
    recipe, store, dataset = prepared_texts(pocket_base, tmp_path, [LONG], data=data)
    artifact = store.by_id("prepared", dataset.ref.key)
    assert not problems_of(artifact, dataset, recipe.data.audit)  # nothing of it is lost
    pieces = sorted(samples_of(store, dataset, "train"), key=lambda s: not s.loss_weights[0])
    renderer = ChatRenderer.load(pocket_base)
    ends = [i for i, piece in enumerate(pieces) if piece.input_ids[-1] in renderer.stop_ids]
    assert len(pieces) == dataset.counts["pieces"] > 3 and len(ends) == 1
    assert {len(piece.input_ids) for i, piece in enumerate(pieces) if i not in ends} == {128}
    assert all(piece.loss_weights[1:].all() for piece in pieces)
    num_labels = sum(np.count_nonzero(piece.loss_weights) for piece in pieces)
    complete = renderer.encoder.encode([LONG]).ids
    assert num_labels - len(complete) in (
        1,
        2,
    )  # the text's tokens, its end, and on some bases a beginning


def test_texts_that_are_rendered_conversations_stop_training(
    pocket_base: str, tmp_path: Path
) -> None:
    texts = [f"### Human: Say {i}.### Assistant: {i}</s>" for i in range(4)]
    recipe, store, dataset = prepared_texts(pocket_base, tmp_path, texts, data={"heldout_share": 0})
    artifact = store.by_id("prepared", dataset.ref.key)
    ends, templates = problems_of(artifact, dataset, recipe.data.audit)
    assert ends.startswith("4 of 4 rows end in the text </s> (first: texts.jsonl:1)")
    assert "### Human:" in templates and "give conversations as messages" in templates


def test_held_out_texts_have_a_loss_and_no_prompt(pocket_base: str, tmp_path: Path) -> None:
    _, store, dataset = prepared_texts(pocket_base, tmp_path, TEXTS, data={"heldout_share": 0.3})
    heldout = load_heldout(store, dataset, max_prompts=8)
    assert len(heldout.samples) == dataset.heldout.num_samples and heldout.prompts == ()


def test_a_gate_of_exact_answers_is_refused_before_training(
    pocket_base: str, tmp_path: Path
) -> None:
    recipe, store, dataset = prepared_texts(
        pocket_base,
        tmp_path,
        TEXTS,
        data={"heldout_share": 0.3},
        gate={"metric": "exact_match"},
        registry={"model": "tales"},
    )
    with pytest.raises(UserError, match=f"dataset {dataset.ref.name} is plain text, which has no"):
        run_recipe(Inputs(recipe), Runner(store, SILENT))
