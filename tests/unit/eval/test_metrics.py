"""Held-out work and what is measured on it, on the pocket base without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.config.recipe import Recipe
from pipelines.core.artifacts import PreparedDataset
from pipelines.core.digests import digest_of
from pipelines.eval.heldout import (
    HeldoutSet,
    answer_batches,
    batch_from_row,
    batch_table,
    load_heldout,
    loss_batches,
)
from pipelines.eval.metrics import is_exact, pad_batch, weighted_nll
from pipelines.eval.scorer import Scorer, ScorerSpec, greedy
from pipelines.packed.reader import PackedSample
from pipelines.storage import Store
from tests.unit.eval.conftest import write_checkpoint


@pytest.fixture(scope="module")
def base(recipe: Recipe) -> Any:
    from pipelines.model.base import load_base

    return load_base(recipe.model, "cpu")


@pytest.fixture(scope="module")
def heldout(eval_store: Store, prepared: PreparedDataset) -> HeldoutSet:
    return load_heldout(eval_store, prepared, max_prompts=8)


def sample(name: str, length: int) -> PackedSample:
    return PackedSample(name, np.arange(length, dtype=np.int32), np.ones(length, np.float32))


def test_every_sample_leaves_its_pack_whole(heldout: HeldoutSet, renderer: Any) -> None:
    assert [s.sample_id for s in heldout.samples] == [f"s{n}" for n in range(15)]
    first = heldout.samples[1]
    text = renderer.decode(first.input_ids, skip_special_tokens=False)
    assert text == "<|user|>Stow the deck please<|assistant|>Aye, captain.<|end|>"
    trained = renderer.decode(first.input_ids[first.loss_weights > 0], skip_special_tokens=False)
    assert trained == "Aye, captain.<|end|>"


def test_the_prompts_are_the_same_every_time_and_not_just_the_first(
    heldout: HeldoutSet, eval_store: Store, prepared: PreparedDataset
) -> None:
    again = load_heldout(eval_store, prepared, max_prompts=8)
    ids = [p.sample_id for p in heldout.prompts]
    assert [p.sample_id for p in again.prompts] == ids and len(set(ids)) == 8
    assert set(ids) != {f"s{n}" for n in range(8)}
    fewer = load_heldout(eval_store, prepared, max_prompts=3)
    assert [p.sample_id for p in fewer.prompts] == ids[:3]


def test_loss_batches_hold_every_sample_once_within_the_budget() -> None:
    samples = [sample(f"s{n}", 1 + (n * 37) % 50) for n in range(100)] + [sample("huge", 500)]
    works = loss_batches(samples, max_tokens=128)
    assert sorted(i for w in works for i in w.sample_ids) == sorted(s.sample_id for s in samples)
    assert all(
        len(w.tokens) * max(map(len, w.tokens)) <= 128 for w in works if w.sample_ids != ["huge"]
    )
    assert len(works) < 40


def test_work_survives_arrow(heldout: HeldoutSet) -> None:
    for work in [*loss_batches(heldout.samples), *answer_batches(heldout.prompts, 3)]:
        back = batch_from_row(batch_table([work]).to_pylist()[0])
        assert (back.kind, back.sample_ids) == (work.kind, work.sample_ids)
        for got, expected in zip(
            [*back.tokens, *back.weights], [*work.tokens, *work.weights], strict=True
        ):
            assert got.dtype == expected.dtype and np.array_equal(got, expected)


def test_weights_scale_each_labels_share(base: Any, heldout: HeldoutSet) -> None:
    one = heldout.samples[0]
    nll, weight, count = weighted_nll(base, [one.input_ids], [one.loss_weights])
    assert weight == count == np.count_nonzero(one.loss_weights)
    twice = weighted_nll(base, [one.input_ids], [one.loss_weights * 2])
    assert twice == (pytest.approx(2 * nll), 2 * weight, count)
    last = np.zeros_like(one.loss_weights)
    last[-1] = 1.0
    assert weighted_nll(base, [one.input_ids], [last])[1:] == (1.0, 1)
    first = np.zeros_like(one.loss_weights)
    first[0] = 1.0
    assert weighted_nll(base, [one.input_ids], [first]) == (0.0, 0.0, 0)


def test_an_answer_ends_before_its_first_stop_token(
    base: Any, heldout: HeldoutSet, renderer: Any
) -> None:
    """Stops are forced: whatever the base says first, calling that token a stop leaves nothing."""
    prompt = heldout.prompts[0].prompt_ids
    whole = greedy(base, [prompt], 12, stop_ids=())[0]
    assert len(whole) == 12
    assert len(greedy(base, [prompt], 12, stop_ids=[int(whole[0])])[0]) == 0
    stop = int(whole[5])
    cut = greedy(base, [prompt], 12, stop_ids=[stop])[0]
    assert cut.tolist() == whole[: whole.tolist().index(stop)].tolist()


def test_greedy_ignores_the_sampling_knobs_in_the_models_folder(
    base: Any, heldout: HeldoutSet
) -> None:
    from transformers import GenerationConfig

    prompts = [p.prompt_ids for p in heldout.prompts[:2]]
    plain = greedy(base, prompts, 12, ())
    base.generation_config = GenerationConfig(
        do_sample=True, temperature=5.0, repetition_penalty=9.0, max_length=5
    )
    assert [a.tolist() for a in greedy(base, prompts, 12, ())] == [a.tolist() for a in plain]


def test_a_padding_id_inside_a_prompt_is_a_token_like_any_other(
    base: Any, heldout: HeldoutSet
) -> None:
    long, short = heldout.prompts[0].prompt_ids, heldout.prompts[-1].prompt_ids
    with_zero = np.concatenate([short[:2], [0], short[2:]]).astype(np.int32)
    alone = greedy(base, [with_zero], 12, ())[0]
    together = greedy(base, [long, with_zero], 12, ())[1]
    assert alone.tolist() == together.tolist()
    for left in (True, False):
        ids, mask = pad_batch([long, with_zero], left)
        assert mask.sum(1).tolist() == [len(long), len(with_zero)]
        assert ids[1][mask[1] == 1].tolist() == with_zero.tolist()


@pytest.mark.parametrize(
    ("generated", "reference", "same"),
    [
        ("a b", " a b\n", True),
        ("a b", "a  b", False),
        ("A", "a", False),
        ("", "", True),
        ("", "a", False),
    ],
)
def test_only_outer_whitespace_is_forgiven(generated: str, reference: str, same: bool) -> None:
    assert is_exact(generated, reference) is same


def test_a_model_that_trained_whole_is_scored_beside_adapters(
    recipe: Recipe, eval_store: Store, trained_adapter: Path, heldout: HeldoutSet
) -> None:
    from pipelines.model.base import load_base
    from pipelines.model.full_finetune import save_full
    from pipelines.model.lora_load import add_adapter

    whole: Any = load_base(recipe.model, "cpu")
    for parameter in whole.parameters():
        parameter.data *= 1.01
    with eval_store.create_artifact("checkpoints", digest_of("whole")) as draft:
        save_full(whole, draft.path / "model", recipe.model.base, dict(whole.named_parameters()))
    assert draft.ref is not None
    adapter = write_checkpoint(eval_store, trained_adapter, 77).ref
    work = loss_batches(heldout.samples)[0]
    spec = ScorerSpec(recipe.model, eval_store.uri, {"whole": draft.ref, "adapter": adapter}, 4)
    found = {row["candidate"]: row for row in Scorer(spec)(batch_table([work])).to_pylist()}
    models = {"base": load_base(recipe.model, "cpu"), "whole": whole}
    models["adapter"] = add_adapter(load_base(recipe.model, "cpu"), "x", trained_adapter)
    for name, model in models.items():
        assert found[name]["error"] is None
        assert found[name]["nll"] == pytest.approx(
            weighted_nll(model, work.tokens, work.weights)[0], rel=1e-4
        )
    assert len({round(row["nll"], 2) for row in found.values()}) == 3
