"""Repeated and nearly repeated rows, and the ids by which they are found."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pipelines.core.conversation import Conversation, Turn
from pipelines.data.convert.content_keys import cluster_id, content_id, prompt_keys
from pipelines.data.convert.dedup import nearly_repeated, repeated, signature
from tests.unit.data.datasets import prepare_rows, rows_of

pytestmark = pytest.mark.usefixtures("ray_cluster")


def test_exact_duplicates_are_dropped_counted_and_listed(pocket_base, store, tmp_path):
    rows = [*rows_of(range(20)), *rows_of(range(5))]
    prepared, texts = prepare_rows(pocket_base, store, tmp_path, rows)
    assert prepared.counts["duplicates"] == 5 and len(texts) == len(set(texts)) == 20
    listed = [json.loads(line) for line in (store.local_dir(prepared.ref) / "rejects.jsonl").open()]
    assert [line["origin"] for line in listed] == [f"rows.jsonl:{n}" for n in range(21, 26)]
    _, texts = prepare_rows(pocket_base, store, tmp_path, rows, duplicates="keep")
    assert len(texts) == 25


def test_near_duplicates_are_found_above_the_threshold(pocket_base, store, tmp_path):
    long = (
        "the quick brown fox jumps over the lazy dog and then it sleeps for a very long time under "
        "the old tree {}"
    )
    words = np.random.default_rng(0).integers(0, 10**9, (8, 12))
    different = [
        {"instruction": f"q{i}", "output": " ".join(map(str, w))} for i, w in enumerate(words)
    ]
    rows = [*rows_of([1], long), *different, *rows_of([2], long)]
    prepared, texts = prepare_rows(pocket_base, store, tmp_path, rows, near_duplicates=0.8)
    assert prepared.counts["near_duplicates"] == 1 and len(texts) == 9
    prepared, _ = prepare_rows(pocket_base, store, tmp_path, rows, near_duplicates=1.0)
    assert prepared.counts["near_duplicates"] == 0


def test_minhash_agrees_with_the_jaccard_similarity():
    text = "a text of some length about nothing at all, with a number of words in it"
    pairs = np.array(
        [
            np.frombuffer(signature(t), np.uint32)
            for t in (text, text.upper(), text + " and a little more")
        ]
    )
    assert list(nearly_repeated(pairs, 0.99)) == [False, True, False]
    assert list(nearly_repeated(pairs, 0.5)) == [False, True, True]
    assert list(repeated(np.array([b"a", b"b", b"a"], "S16"))) == [False, False, True]


def test_the_name_of_a_turn_is_part_of_the_content_id_only():
    plain, named = (
        Conversation((Turn("user", "a", name=name), Turn("assistant", "b")))
        for name in (None, "ada")
    )
    assert content_id(plain) != content_id(named) and prompt_keys(plain) == prompt_keys(named)


def reference_near(signatures, threshold):
    """One sample after another against all that were kept."""
    mask = np.zeros(len(signatures), bool)
    for later in range(len(signatures)):
        mask[later] = any(
            (signatures[later] == signatures[e]).mean() >= threshold
            for e in range(later)
            if not mask[e]
        )
    return mask


def test_near_duplicates_equal_those_of_the_pairwise_comparison():
    rng = np.random.default_rng(0)
    heads = rng.integers(0, 2**32, (12, 64), np.uint32)
    signatures = heads[rng.integers(0, 12, 200)]
    changed = rng.random(signatures.shape) < rng.choice([0.02, 0.1, 0.3], (200, 1))
    signatures = np.where(changed, rng.integers(0, 2**32, signatures.shape, np.uint32), signatures)
    for threshold in (0.95, 0.8):
        near = nearly_repeated(signatures, threshold)
        assert list(near) == list(reference_near(signatures, threshold)) and 0 < near.sum() < 188
    among = np.arange(0, 200, 3)
    assert list(nearly_repeated(signatures, 0.8, among)[among]) == list(
        reference_near(signatures[among], 0.8)
    )


def test_variants_and_continuations_of_a_conversation_share_a_cluster():
    opening = Turn("user", "What is it?")
    variants = [
        Conversation((opening, Turn("assistant", "a"))),
        Conversation((Turn("system", "s"), Turn("user", " what IS\nit?"), Turn("assistant", "b"))),
        Conversation((opening, Turn("assistant", "a"), Turn("user", "c"), Turn("assistant", "d"))),
    ]
    assert len({cluster_id(variant) for variant in variants}) == 1
    assert len({content_id(variant) for variant in variants}) == 3
    other = Conversation((Turn("user", "What is this?"), Turn("assistant", "a")))
    greetings = [Conversation((Turn("assistant", text),)) for text in "ab"]
    assert len({cluster_id(c) for c in (*variants, other, *greetings)}) == 4
    assert cluster_id(greetings[0]) == content_id(greetings[0])
