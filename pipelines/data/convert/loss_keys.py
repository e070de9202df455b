"""The keys of a message that say which parts of it enter the loss, and how much."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pipelines.data.convert.row_checks import brief
from pipelines.data.convert.row_error import RowError

MAX_WEIGHT = 1000  # the limit of a source's weight too; beyond it one row dominates the loss
FLAGS = ("train", "loss")
WEIGHTS = ("weight", "loss_weight", "loss_scale")
LOSS_KEYS = frozenset({*FLAGS, *WEIGHTS, "train_detail"})


def train_and_weight(message: Mapping[str, Any], where: str) -> tuple[bool, float]:
    """Whether a turn is trained, and the factor of its loss.

    Raises RowError for values of another type, and for keys that contradict each other.
    """
    flags = {key: message[key] for key in FLAGS if key in message}
    weights = {key: message[key] for key in WEIGHTS if key in message}
    for key, value in flags.items():
        if not isinstance(value, bool):
            raise RowError(f"{where}: {key} is true or false, this is {brief(value)}")
    for key, value in weights.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not 0 <= value <= MAX_WEIGHT:
            raise RowError(
                f"{where}: {key} is a number of 0 to {MAX_WEIGHT}, this is {brief(value)}"
            )
    given = {**flags, **weights}
    asks_to_train = {bool(value) for value in given.values()}
    if len(asks_to_train) > 1 or len(set(weights.values())) > 1:
        shown = ", ".join(f"{key}: {value}" for key, value in given.items())
        raise RowError(f"{where}: {shown} contradict each other")
    weight = next(iter(weights.values()), 1)
    return all(flags.values()), float(weight)


def masked_by_detail(details: Any, content: Any, where: str) -> tuple[tuple[int, int], ...]:
    """The ranges of characters of `content`, as (start, end), that Axolotl's `train_detail` leaves
    out of the loss.

    Its entries have begin_offset and end_offset, both inclusive, and train. Characters outside of
    all entries are trained only if no entry says `train: true`. Where entries overlap, true wins.
    """
    if not isinstance(content, str) or not isinstance(details, list):
        raise RowError(f"{where}: train_detail is a list of ranges of a content that is one text")
    ranges = [_range(detail, len(content), where) for detail in details]
    trained = [(begin, end) for begin, end, train in ranges if train]
    marked = bytearray(not trained for _ in content)
    for begin, end, train in sorted(ranges, key=lambda each: each[2]):
        marked[begin:end] = bytes([train]) * (end - begin)
    return ranges_of(marked)


def ranges_of(marked: bytearray) -> tuple[tuple[int, int], ...]:
    """The ranges (start, end) in which `marked`, which has 1 for each trained character, has 0."""
    ranges, start = [], marked.find(0)
    while start >= 0:
        end = marked.find(1, start)
        end = len(marked) if end < 0 else end
        ranges.append((start, end))
        start = marked.find(0, end)
    return tuple(ranges)


def _range(detail: Any, length: int, where: str) -> tuple[int, int, bool]:
    """(start, end, train) of an entry of `train_detail`, the end exclusive."""
    values = (
        [detail.get(key) for key in ("begin_offset", "end_offset", "train")]
        if isinstance(detail, Mapping)
        else []
    )
    match values:
        case [int(begin), int(end), bool(train)] if 0 <= begin <= end and begin < length:
            return begin, min(end + 1, length), train
    raise RowError(
        f"{where}: an entry of train_detail has begin_offset and end_offset within the "
        f"{length} characters of the content and train, this is {brief(detail)}"
    )
