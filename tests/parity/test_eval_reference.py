"""The evaluation's loss and answers equal those of transformers on single samples."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from pipelines.chat import ChatRenderer
from pipelines.config.schema import ModelConfig
from pipelines.core.conversation import Conversation, Turn
from pipelines.eval.metrics import weighted_nll
from pipelines.eval.scorer import greedy

TEXTS = [
    ("Say it like a pirate. The boat is old.", "Arr, the boat be old."),
    ("Make a list of three things.", "- maps\n- ropes\n- sails"),
    ("Hi", "Good day to you, and to everyone who came along with you this fine morning."),
    ("Which city does Uma Vinda live in? " * 4, "Paris"),
]


@pytest.fixture(scope="module")
def base(pocket_base: str) -> Any:
    from pipelines.model.base import load_base

    return load_base(ModelConfig.model_validate({"base": pocket_base, "dtype": "fp32"}), "cpu")


@pytest.fixture(scope="module")
def renderer(pocket_base: str) -> ChatRenderer:
    return ChatRenderer.load(pocket_base)


def test_the_loss_of_a_padded_batch_equals_transformers_token_mean_over_all_samples(
    base: Any, renderer: ChatRenderer
) -> None:
    rendered = [
        renderer.render(Conversation((Turn("user", q), Turn("assistant", a)))) for q, a in TEXTS
    ]
    nll, weight, _ = weighted_nll(
        base, [r.input_ids for r in rendered], [r.loss_weights for r in rendered]
    )
    expected, count = 0.0, 0
    with torch.inference_mode():
        for r in rendered:
            ids = torch.from_numpy(r.input_ids.astype(np.int64))[None]
            labels = torch.where(torch.from_numpy(r.loss_weights)[None] > 0, ids, -100)
            tokens = int((labels[:, 1:] != -100).sum())
            expected += float(base(input_ids=ids, labels=labels).loss) * tokens
            count += tokens
    assert weight == count
    assert nll / weight == pytest.approx(expected / count, abs=1e-5)


def test_the_answers_of_a_padded_batch_equal_those_of_generate_on_each_prompt(
    base: Any, renderer: ChatRenderer
) -> None:
    prompts = [renderer.prompt_ids([{"role": "user", "content": q}]) for q, _ in TEXTS]
    batched = greedy(base, prompts, 24, renderer.stop_ids)
    for prompt, answer in zip(prompts, batched, strict=True):
        ids = torch.from_numpy(prompt.astype(np.int64))[None]
        with torch.inference_mode():
            out = base.generate(
                ids, attention_mask=torch.ones_like(ids), max_new_tokens=24, do_sample=False,
                eos_token_id=list(renderer.stop_ids), pad_token_id=0,
            )  # fmt: skip
        alone = [t for t in out[0, ids.shape[1] :].tolist() if t not in renderer.stop_ids]
        assert answer.tolist() == alone
