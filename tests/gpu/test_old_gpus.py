"""A GPU that is too old for flash attention and the kernels trains with the base's own layers."""

from __future__ import annotations

import pytest


@pytest.mark.gpu
def test_an_old_gpu_runs_the_layers_of_the_base(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from bench._shapes import SHAPES, random_model, random_row
    from pipelines.config.schema import LoraConfig
    from pipelines.layers.attention import PACKED
    from pipelines.layers.decoder_layer import fuse
    from pipelines.model.lora import attach
    from pipelines.train.batch import collate
    from pipelines.train.loss import PackedLoss

    row, losses = random_row(0, 512, SHAPES["tiny"]["vocab_size"]), []
    for capability in (torch.cuda.get_device_capability(), (7, 5)):
        monkeypatch.setattr(
            torch.cuda, "get_device_capability", lambda *_, version=capability: version
        )
        model = attach(
            random_model("tiny", PACKED, "none", torch.device("cuda"), torch.float16),
            LoraConfig(r=8, alpha=16),
            seed=0,
        ).train()
        losses.append(float(PackedLoss(model)(collate([row], "cuda"))))
    assert "older than compute capability 8.0" in fuse(model, True, "off")
    assert losses[1] == pytest.approx(losses[0], rel=2e-3)
