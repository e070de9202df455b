"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from pipelines.config.schema import TrainConfig
from pipelines.core.errors import UserError
from pipelines.train.batch import MicroBatch, Row, collate
from pipelines.train.engine.protocol import Engine
from pipelines.train.row_order import RowOrder
from pipelines.train.schedule import learning_rate

MAX_SKIPS = 20  # steps in a row that `nonfinite: skip` leaves out before it gives up


def train_steps(
    engine: Engine,
    schedule: RowOrder,
    rows: Iterator[Row],
    first_step: int,
    on_step: Callable[[int, dict[str, float], Sequence[Row]], bool | None],
) -> None:
    """Run steps `first_step` .. end; `on_step(steps_done, metrics, this rank's rows)` after each.

    Metrics are losses a token and seconds. The next step's rows are taken and moved while the device still computes, so
    what is wrong with them is raised before the step is done.

    `on_step` ends the run early by returning False. Raises UserError when a loss or gradient is not finite and
    `nonfinite` says stop; a step with such a gradient changes nothing and is counted as "skipped".
    """
    config, skips = schedule.config, 0
    micro_batches = math.ceil(
        math.ceil(config.global_batch / engine.world_size) / config.micro_batch
    )

    def taken(step: int) -> tuple[list[Row], list[MicroBatch], torch.Tensor, float]:
        """This rank's rows and micro-batches of a step; loss tokens and tokens of all ranks; seconds waited for rows."""
        asked = time.perf_counter()
        mine = [next(rows) for _ in schedule.rows_of(step)[engine.rank :: engine.world_size]]
        waited = time.perf_counter() - asked
        batches = collate_all(mine, config.micro_batch, micro_batches, engine.device)
        return (
            mine,
            batches,
            engine.sum_over_ranks([sum(b.loss_tokens for b in batches), count_tokens(mine)]),
            waited,
        )

    upcoming = None
    for step in range(first_step, schedule.num_steps):
        started = time.perf_counter()
        mine, batches, counts, waited = upcoming or taken(step)
        torch.manual_seed(hash((config.seed, step, engine.rank)))  # dropout repeats after a resume
        losses = [engine.accumulate(batch, counts[0]) for batch in batches]
        upcoming = (
            taken(step + 1) if step + 1 < schedule.num_steps else None
        )  # while the device is still busy
        rate = learning_rate(config, step, schedule.num_steps)
        grad_norm = engine.step(rate)
        total = engine.sum_over_ranks(torch.stack(losses).double().sum(0, keepdim=True))
        loss_sum, num_loss, num_tokens = torch.cat([total, counts]).tolist()
        seconds = time.perf_counter() - started
        values = {
            "loss": loss_sum / num_loss,
            "lr": rate,
            "grad_norm": grad_norm,
            "tokens": num_tokens,
        }
        skips = _check_finite(config, step + 1, values, engine.scale_lowered, skips)
        values |= {"tokens_per_s": num_tokens / seconds, "step_s": seconds, "data_wait_s": waited}
        if on_step(step + 1, values | {"skipped": float(skips > 0)}, mine) is False:
            return


def _check_finite(
    config: TrainConfig, step: int, values: dict[str, float], scale_lowered: bool, skips: int
) -> int:
    """The number of skipped steps in a row, this one included; fp16 lowering its loss scale counts as none."""
    if math.isfinite(values["loss"]) and (math.isfinite(values["grad_norm"]) or scale_lowered):
        return 0
    if config.nonfinite == "stop" or skips + 1 >= MAX_SKIPS:
        skipped = f" after {skips} skipped steps in a row" if skips else ""
        advice = (
            "or set train.nonfinite=skip" if config.nonfinite == "stop" else "or train.clip_norm"
        )
        raise UserError(
            f"step {step}: loss {values['loss']}, gradient norm {values['grad_norm']}{skipped}; the last checkpoint is from "
            f"before. Lower train.lr={config.lr:g}, look at the data of this step, {advice}"
        )
    return skips + 1


def collate_all(
    rows: Sequence[Row], micro_batch: int, num_batches: int, device: torch.device
) -> list[MicroBatch]:
    """A rank's rows as exactly `num_batches` micro-batches, fillers at the end, so that no rank misses a collective."""
    return [
        collate(rows[i * micro_batch : (i + 1) * micro_batch], device) for i in range(num_batches)
    ]


def count_tokens(rows: Sequence[Row]) -> int:
    """Real tokens in packed rows, padding not counted."""
    return int(sum(np.sum(row["sample_lengths"]) for row in rows))


def heldout_loss(engine: Engine, rows: Sequence[Row], num_rows: int, micro_batch: int) -> float:
    """Mean loss of a token over `num_rows` held-out rows, of which each rank brings its share; NaN when there are none."""
    num_batches = math.ceil(math.ceil(num_rows / engine.world_size) / micro_batch)
    batches = collate_all(rows, micro_batch, num_batches, engine.device)
    local = sum(engine.loss_sum(batch) for batch in batches)
    total, count = engine.sum_over_ranks(
        [local, sum(batch.loss_tokens for batch in batches)]
    ).tolist()
    return total / count if count else float("nan")
