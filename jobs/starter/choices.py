"""The numbers of a starter recipe, chosen from rows, base and machine."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from jobs.starter.base_size import BaseSize
from jobs.starter.first_rows import FirstRows, split_keys
from jobs.starter.machine_size import MachineSize
from pipelines.core.conversation import Conversation
from pipelines.packed.pack import best_fit

MIN_HELDOUT, MAX_HELDOUT_SHARE, ENOUGH_HELDOUT = 20, 0.3, 500
_SHARES = tuple(thousandths / 1000 for thousandths in range(1, 301))
_CHARS_PER_TOKEN = 3.5
_ROW_TOKENS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
_USUAL_ROW_TOKENS = 2048
_GOOD_FILL = 0.85
_FEW_PACKED_ROWS, _MANY_PACKED_ROWS = 20, 256
_MAX_GLOBAL_BATCH = 16
_MIN_STEPS, _MAX_EPOCHS = 60, 10
_POCKET_EFFORT = 4
_MANY_ROWS = 20_000
_TRAINING_BYTES = 1.6  # of GPU memory for each byte of frozen weights: activations and logits


@dataclass(frozen=True)
class Choices:
    """The numbers that depend on rows, base and machine."""

    median_tokens: int
    longest_tokens: int
    row_tokens: int
    num_too_long: int
    heldout_share: float
    num_heldout: int
    global_batch: int
    epochs: int
    num_steps: int
    save_every: int
    max_new_tokens: int
    quantization: str
    workers: int
    cpus_per_worker: int
    gpus_per_worker: int


def choose(rows: FirstRows, base: BaseSize, machine: MachineSize) -> Choices:
    """Choose the numbers. Those that depend on all rows are estimates if `rows` has only some."""
    lengths, answer_lengths = _lengths(rows, base)
    row_tokens = choose_row_tokens(lengths, base.window, rows.num_rows)
    fitting = lengths[lengths <= row_tokens]
    share, num_heldout = choose_heldout_share(
        rows.num_rows, split_keys(rows.conversations) if rows.complete else None
    )
    packed = _num_packed(fitting, row_tokens) * rows.num_rows / len(lengths) * (1 - share)
    on_gpu = machine.num_gpus > 0 and not base.is_pocket
    global_batch = _power_of_two(packed / 16, _MAX_GLOBAL_BATCH)
    workers = min(machine.num_gpus, global_batch) if on_gpu else 1
    global_batch -= global_batch % workers
    steps_per_epoch = max(1, math.ceil(packed / global_batch))
    least = 1 if rows.num_rows > _MANY_ROWS else 3
    # The pocket base knows little and steps cost a tenth of a second: it gets more of them.
    effort = _POCKET_EFFORT if base.is_pocket else 1
    epochs = min(max(least, math.ceil(effort * _MIN_STEPS / steps_per_epoch)), effort * _MAX_EPOCHS)
    num_steps = epochs * steps_per_epoch
    tight = base.num_parameters * 2 * _TRAINING_BYTES > machine.gpu_bytes
    spare = machine.num_cpus - 1  # Ray's own processes need a core too
    return Choices(
        int(np.median(lengths)),
        int(lengths.max()),
        row_tokens,
        len(lengths) - len(fitting),
        share,
        num_heldout,
        global_batch,
        epochs,
        num_steps,
        max(1, math.ceil(num_steps / 4)),
        _max_new_tokens(answer_lengths, row_tokens),
        "nf4" if on_gpu and tight else "none",
        workers,
        min(8, max(1, spare // workers)),
        1 if on_gpu else 0,
    )


def choose_row_tokens(lengths: np.ndarray, window: int, num_rows: int) -> int:
    """A power of two from 256 that fits nearly every row, within the base's window.

    `lengths` are those of the first of `num_rows` rows. The result is up to 2,048 if there are
    enough tokens for many packed rows, and larger than needed if small ones would be badly filled.
    """
    allowed = [size for size in _ROW_TOKENS if size <= window] or [window]
    needed = lengths.max() if len(lengths) < 200 else np.percentile(lengths, 99.5)
    candidates = [size for size in allowed if size >= needed] or allowed[-1:]
    usual = [size for size in candidates if size <= _USUAL_ROW_TOKENS]
    num_tokens = float(lengths.mean()) * num_rows
    plentiful = [size for size in usual if num_tokens >= size * _MANY_PACKED_ROWS]
    if plentiful:
        return plentiful[-1]
    if num_tokens <= candidates[0] * _FEW_PACKED_ROWS:  # the audit does not judge their fill either
        return candidates[0]
    return next((size for size in usual if _fill(lengths, size) >= _GOOD_FILL), candidates[0])


def choose_heldout_share(num_rows: int, keys: Sequence[float] | None) -> tuple[float, int]:
    """The share of rows to hold out, and how many rows that is.

    A tenth of the rows, but at least 20 and at most 500; never more than 30 %, which small
    datasets with fewer than 67 rows reach. With `keys` (one number in 0..1 for each row, see
    `split_keys`) the count is exact, else expected.
    """
    wanted = min(max(math.ceil(num_rows / 10), MIN_HELDOUT), ENOUGH_HELDOUT)
    if keys is None:
        share = min(MAX_HELDOUT_SHARE, math.ceil(1000 * wanted / num_rows) / 1000)
        return share, round(share * num_rows)
    counts = {share: sum(key < share for key in keys) for share in _SHARES}
    share = next((s for s, count in counts.items() if count >= wanted), MAX_HELDOUT_SHARE)
    return share, counts[share]


def _lengths(rows: FirstRows, base: BaseSize) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of each conversation and of its answers; estimated without a tokenizer."""
    if base.renderer is None:
        texts = [
            (sum(len(t.content) for t in c.turns), sum(map(len, _answers(c))))
            for c in rows.conversations
        ]
        tokens = np.ceil(np.asarray(texts, float) / _CHARS_PER_TOKEN).astype(np.int64) + 1
        return tokens[:, 0], tokens[:, 1]
    batch = base.renderer.render_batch(rows.conversations)
    lengths = np.diff(batch.offsets)
    counted = np.concatenate([[0], np.cumsum(batch.weights > 0)])
    rendered = lengths > 0
    if not rendered.any():
        return np.ones(1, np.int64), np.ones(1, np.int64)
    return lengths[rendered], np.diff(counted[batch.offsets])[rendered]


def _answers(conversation: Conversation) -> list[str]:
    return [turn.content for turn in conversation.turns if turn.role == "assistant"]


def _num_packed(lengths: np.ndarray, row_tokens: int) -> int:
    return int(best_fit(lengths, row_tokens).max()) + 1 if len(lengths) else 1


def _fill(lengths: np.ndarray, row_tokens: int) -> float:
    fitting = lengths[lengths <= row_tokens]
    return float(fitting.sum()) / (row_tokens * _num_packed(fitting, row_tokens))


def _power_of_two(value: float, highest: int) -> int:
    """The largest power of two up to `value` and `highest`, at least 1."""
    return 1 << (int(min(max(value, 1), highest)).bit_length() - 1)


def _max_new_tokens(answer_lengths: np.ndarray, row_tokens: int) -> int:
    """Enough for 95 of 100 answers, rounded up to a multiple of 32."""
    tokens = 32 * math.ceil(float(np.percentile(answer_lengths, 95)) / 32)
    return min(max(tokens, 32), row_tokens, 1024)
