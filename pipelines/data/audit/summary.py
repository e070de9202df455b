"""An audit as a table of names and figures, for the terminal and the page."""

from __future__ import annotations

from typing import Any

from pipelines.data.audit.audit import Audit

_FIRST = {name: i for i, name in enumerate(("read", "train", "heldout", "rejected"))}
_MAX_FILES = 5


def summary_of(audit: Audit) -> dict[str, Any]:
    """The figures by name, in the order in which people ask for them."""
    prepared = audit.prepared
    num_more = len(audit.sources) - _MAX_FILES
    more = f" and {num_more:,} more" if num_more > 0 else ""
    summary: dict[str, Any] = {
        "dataset": prepared.ref.name,
        "files": f"{', '.join(audit.sources[:_MAX_FILES])}{more}",
    }
    for name, split in (("train", prepared.train), ("held out", prepared.heldout)):
        share = split.num_loss_tokens / max(1, split.num_tokens)
        summary[name] = (
            f"{split.num_samples:,} samples, {split.num_tokens:,} tokens, {share:.1%} in the loss, "
            f"{split.num_rows:,} pack{'s' if split.num_rows != 1 else ''} of "
            f"{prepared.row_tokens:,}, "
            f"fill {split.fill(prepared.row_tokens):.2%}"
        )
    order = sorted(
        prepared.counts.items(), key=lambda item: (_FIRST.get(item[0], len(_FIRST)), item[0])
    )
    summary["rows"] = ", ".join(
        f"{name.replace('_', ' ')} {count:,}" for name, count in order if count
    )
    for name, text, items in (
        ("prefix_matches", "answers after their generation prompt", "checked"),
        ("stop_trained", "answers that end in a stop token", "in the loss"),
    ):
        checked, failed = _counts(audit, name)
        summary[text] = f"{checked - failed:,} of {checked:,} {items}"
    checked, failed = _counts(audit, "texts_beside_calls")
    if checked:
        summary["text next to tool calls"] = (
            f"rendered in {checked - failed:,} of {checked:,} turns"
        )
    checked, failed = _counts(audit, "other_turns_masked")
    summary["prompt turns in the loss"] = f"{failed:,} of {checked:,} system, user and tool turns"
    return summary


def _counts(audit: Audit, check: str) -> tuple[int, int]:
    return audit.checks.get(f"{check}_checked", 0), audit.checks.get(f"{check}_failed", 0)
