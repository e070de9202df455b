"""The trials of tiny bases see wrong results: without the product's own checks a cell is silent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from jobs.bases import training_trial
from jobs.bases.trial import base_row, try_base
from pipelines.model import merge
from pipelines.model.published import PublishedBase
from pipelines.model.support_table import COLUMNS
from serve_app.engines.transformers import engine
from serve_app.engines.transformers.slots import SlotCache
from tests.small_bases import HEADS

LLAMA = PublishedBase("org/base", {"model_type": "llama", **HEADS})


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def ignored(*_: Any, **__: Any) -> None:
    """Stands for a check that is left out."""


def test_another_loss_is_silent_without_the_proof(monkeypatch: pytest.MonkeyPatch) -> None:
    scaled = PublishedBase("org/base", {"model_type": "minicpm3", "num_key_value_heads": 40})
    assert try_base(scaled, columns=("packed",))["packed"].verdict == "refused"
    monkeypatch.setattr(training_trial, "check_proof", ignored)
    assert try_base(scaled, columns=("packed",))["packed"].verdict == "silent"


def test_a_tensor_that_never_moves_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    step = torch.optim.AdamW.step

    def without_first(self: torch.optim.Optimizer, *given: Any) -> Any:
        self.param_groups[0]["params"][0].grad = None
        return step(self, *given)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(torch.optim.AdamW, "step", without_first)
    assert "have not moved" in try_base(LLAMA, columns=("packed",))["packed"].reason
    monkeypatch.setattr(training_trial, "check_moved", ignored)
    cell = try_base(LLAMA, columns=("packed",))["packed"]
    assert cell.verdict == "silent"
    assert "1 adapter tensors never move" in cell.reason


def test_a_base_without_its_adapter_is_no_merge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge, "merge_adapter", lambda config, *_: merge.load_base(config, "cpu"))
    assert try_base(LLAMA, columns=("merges",))["merges"].verdict == "silent"


def test_a_mask_that_hides_nothing_is_silent_without_the_check(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin = SlotCache.begin
    monkeypatch.setattr(
        SlotCache, "begin", lambda *given: torch.ones_like(begin(*given)), raising=True
    )
    assert try_base(LLAMA, columns=("served",))["served"].verdict == "refused"
    monkeypatch.setattr(engine, "check_cache", ignored)
    assert try_base(LLAMA, columns=("served",))["served"].verdict == "silent"


def test_linears_that_are_not_quantized_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    load = training_trial.load_base

    def unquantized(config: Any, *given: Any) -> Any:
        return load(config.model_copy(update={"quantization": "none"}), *given)

    monkeypatch.setattr(training_trial, "load_base", unquantized)
    assert try_base(LLAMA, columns=("nf4",))["nf4"].verdict == "silent"


def test_an_error_of_the_product_is_broken(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> None:
        raise KeyError("a traceback")

    monkeypatch.setattr(training_trial, "save_adapter", fails)
    assert try_base(LLAMA, columns=("packed",))["packed"].verdict == "broken"


def test_a_base_of_which_no_copy_can_be_built_or_run_is_not_tried() -> None:
    unknown = base_row(PublishedBase("org/base", {"model_type": "no_such_model"}))
    assert {cell.verdict for cell in unknown.cells.values()} <= {"not run", "no"}
    assert unknown.cells.keys() == COLUMNS.keys()
    unfit = try_base(PublishedBase("org/base", {"model_type": "xmod"}))
    assert "does not run in transformers" in unfit["loads"].reason
