"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch

from pipelines.config.schema import TrainConfig
from pipelines.core.errors import UserError
from pipelines.train.batch import MicroBatch, Row, collate_all, count_tokens
from pipelines.train.engine.protocol import Engine
from pipelines.train.row_order import RowOrder
from pipelines.train.schedule import learning_rate

MAX_SKIPS = 20  # consecutive steps that train.nonfinite=skip skips before the run ends

OnStep = Callable[[int, dict[str, float], Sequence[Row]], bool | None]
"""Called after each step with the steps done, the step's metrics and this rank's rows."""


def train_steps(
    engine: Engine, row_order: RowOrder, rows: Iterator[Row], first_step: int, on_step: OnStep
) -> None:
    """Run the steps `first_step` .. end of a run. Collective.

    `rows` yields this rank's packed rows in the order of `row_order.rows_of_rank`. `on_step` ends
    the run early by returning False. Its metrics: "loss" (weighted mean over the label positions of
    all ranks), "lr", "grad_norm" (before clipping), "tokens", "tokens_per_s", "step_s",
    "data_wait_s" and "skipped".

    A step whose loss or gradient is not finite changes no weight. Raises UserError after such a
    step if `train.nonfinite` is "stop", or after MAX_SKIPS of them if it is "skip".
    """
    config, num_skipped = row_order.config, 0
    next_data: _StepData | None = None
    for step in range(first_step, row_order.num_steps):
        started = time.perf_counter()
        data = next_data or _load_step(engine, row_order, rows, step)
        # Each step has its own seed, so a resumed run draws the same dropout masks.
        torch.manual_seed(hash((config.seed, step, engine.rank)))
        losses = [engine.accumulate(batch, data.total_weight) for batch in data.batches]
        # Load the next step's rows while the device still computes this one's gradient. An error in
        # them is therefore raised before this step is reported.
        is_last = step + 1 == row_order.num_steps
        next_data = None if is_last else _load_step(engine, row_order, rows, step + 1)
        lr = learning_rate(config, step, row_order.num_steps)
        grad_norm = engine.step(lr)
        # One transfer to the host for all numbers of the step; the host waits for the device here.
        loss_sum = engine.sum_over_ranks(torch.stack(losses).double().sum(0, keepdim=True))
        total_loss, total_weight, tokens = torch.cat([loss_sum, data.counts]).tolist()
        seconds = time.perf_counter() - started
        metrics = {
            "loss": total_loss / total_weight,
            "lr": lr,
            "grad_norm": grad_norm,
            "tokens": tokens,
            "tokens_per_s": tokens / seconds,
            "step_s": seconds,
            "data_wait_s": data.wait_s,
        }
        num_skipped = check_finite(config, step + 1, metrics, engine.scale_lowered, num_skipped)
        metrics["skipped"] = float(num_skipped > 0)
        if on_step(step + 1, metrics, data.rows) is False:
            return


@dataclass(frozen=True)
class _StepData:
    """One rank's rows and micro-batches of a step.

    `counts` [2] float64 on the device: the loss weight and the tokens of all ranks. `wait_s` is the
    time that the rank waited for its rows.
    """

    rows: list[Row]
    batches: list[MicroBatch]
    counts: torch.Tensor
    wait_s: float

    @property
    def total_weight(self) -> torch.Tensor:
        return self.counts[0]


def _load_step(engine: Engine, row_order: RowOrder, rows: Iterator[Row], step: int) -> _StepData:
    """Take this rank's rows of a step and move them to the device.

    Collective. The host does not wait for the device.
    """
    config = row_order.config
    rows_per_rank = math.ceil(config.global_batch / engine.world_size)
    started = time.perf_counter()
    num_rows = len(row_order.rows_of(step)[engine.rank :: engine.world_size])
    step_rows = [next(rows) for _ in range(num_rows)]
    wait_s = time.perf_counter() - started
    num_batches = math.ceil(rows_per_rank / config.micro_batch)
    batches = collate_all(step_rows, config.micro_batch, num_batches, engine.device)
    weight = sum(batch.total_weight for batch in batches)
    counts = engine.sum_over_ranks([weight, count_tokens(step_rows)])
    return _StepData(step_rows, batches, counts, wait_s)


def check_finite(
    config: TrainConfig,
    step: int,
    metrics: dict[str, float],
    scale_lowered: bool,
    num_skipped: int,
) -> int:
    """The number of consecutive skipped steps up to this one, `num_skipped` of them before it.

    A step on which fp16 lowered its loss scale is not counted. Raises UserError as `train_steps`
    does.
    """
    loss, grad_norm = metrics["loss"], metrics["grad_norm"]
    if math.isfinite(loss) and (math.isfinite(grad_norm) or scale_lowered):
        return 0
    stops = config.nonfinite == "stop"
    if stops or num_skipped + 1 >= MAX_SKIPS:
        after = f" after {num_skipped} skipped steps in a row" if num_skipped else ""
        advice = "or set train.nonfinite=skip" if stops else "or train.clip_norm"
        raise UserError(
            f"step {step}: loss {loss}, gradient norm {grad_norm}{after}; the last checkpoint is "
            f"from an earlier step. Lower train.lr={config.lr:g}, look at the data of this step, "
            f"{advice}"
        )
    return num_skipped + 1


def heldout_loss(engine: Engine, rows: Sequence[Row], num_rows: int, micro_batch: int) -> float:
    """Weighted mean loss over `num_rows` held-out rows; NaN if there are none.

    `rows` are this rank's part of them. Collective.
    """
    num_batches = math.ceil(math.ceil(num_rows / engine.world_size) / micro_batch)
    batches = collate_all(rows, micro_batch, num_batches, engine.device)
    loss_sum = sum(engine.loss_sum(batch) for batch in batches)
    weight = sum(batch.total_weight for batch in batches)
    total_loss, total_weight = engine.sum_over_ranks([loss_sum, weight]).tolist()
    return total_loss / total_weight if total_weight else float("nan")
