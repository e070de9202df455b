"""Greedy answers and the scorer actor on the pocket base, without Ray."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.config.recipe import Recipe
from pipelines.core.artifacts import TemplateChoice
from pipelines.core.digests import digest_of
from pipelines.eval.heldout import HeldoutSet, batch_table, loss_batches
from pipelines.eval.metrics import pad_batch, weighted_nll
from pipelines.eval.scorer import Scorer, ScorerSpec, greedy
from pipelines.storage import Store
from tests.unit.eval.conftest import write_checkpoint


def test_an_answer_ends_before_its_first_stop_token(
    base: Any, heldout: HeldoutSet, renderer: Any
) -> None:
    """Any token can be declared a stop, so the test chooses stops from a plain answer."""
    prompt = heldout.prompts[0].prompt_ids
    answer = greedy(base, [prompt], 12, stop_ids=())[0]
    assert len(answer) == 12
    assert len(greedy(base, [prompt], 12, stop_ids=[int(answer[0])])[0]) == 0
    stop = int(answer[5])
    cut = greedy(base, [prompt], 12, stop_ids=[stop])[0]
    assert cut.tolist() == answer[: answer.tolist().index(stop)].tolist()


def test_greedy_ignores_the_sampling_settings_of_the_models_folder(
    base: Any, heldout: HeldoutSet
) -> None:
    from transformers import GenerationConfig

    prompts = [p.prompt_ids for p in heldout.prompts[:2]]
    plain = greedy(base, prompts, 12, ())
    base.generation_config = GenerationConfig(
        do_sample=True, temperature=5.0, repetition_penalty=9.0, max_length=5
    )
    assert [a.tolist() for a in greedy(base, prompts, 12, ())] == [a.tolist() for a in plain]


def test_the_padding_id_inside_a_prompt_is_an_ordinary_token(
    base: Any, heldout: HeldoutSet
) -> None:
    long, short = heldout.prompts[0].prompt_ids, heldout.prompts[-1].prompt_ids
    with_zero = np.concatenate([short[:2], [0], short[2:]]).astype(np.int32)
    alone = greedy(base, [with_zero], 12, ())[0]
    in_batch = greedy(base, [long, with_zero], 12, ())[1]
    assert alone.tolist() == in_batch.tolist()
    for left in (True, False):
        ids, mask = pad_batch([long, with_zero], left)
        assert mask.sum(1).tolist() == [len(long), len(with_zero)]
        assert ids[1][mask[1] == 1].tolist() == with_zero.tolist()


def test_a_fully_fine_tuned_model_is_scored_together_with_adapters(
    recipe: Recipe, eval_store: Store, trained_adapter: Path, heldout: HeldoutSet
) -> None:
    from pipelines.model.base import load_base
    from pipelines.model.full_finetune import save_full
    from pipelines.model.lora_load import add_adapter

    full: Any = load_base(recipe.model, "cpu")
    for parameter in full.parameters():
        parameter.data *= 1.01
    with eval_store.create_artifact("checkpoints", digest_of("full")) as draft:
        save_full(full, draft.path / "model", recipe.model.base, dict(full.named_parameters()))
    assert draft.ref is not None
    adapter = write_checkpoint(eval_store, trained_adapter, 77).ref
    batch = loss_batches(heldout.samples)[0]
    checkpoints = {"full": draft.ref, "adapter": adapter}
    spec = ScorerSpec(recipe.model, eval_store.uri, checkpoints, 4, TemplateChoice())
    results = {row["candidate"]: row for row in Scorer(spec)(batch_table([batch])).to_pylist()}
    models = {"base": load_base(recipe.model, "cpu"), "full": full}
    models["adapter"] = add_adapter(load_base(recipe.model, "cpu"), "x", trained_adapter)
    for name, model in models.items():
        assert results[name]["error"] is None
        assert results[name]["nll"] == pytest.approx(
            weighted_nll(model, batch.tokens, batch.weights)[0], rel=1e-4
        )
    assert len({round(row["nll"], 2) for row in results.values()}) == 3
