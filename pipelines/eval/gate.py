"""The gate: a candidate is promoted only when it beats every rival by the margin, on numbers that are finite."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pipelines.config.schema import GateConfig
from pipelines.core.artifacts import EvalReport, GateDecision, Score

_ROUNDING = 1e-12  # 0.55 - 0.5 is a hair under 0.05


def decide(
    gate: GateConfig, report: EvalReport, rivals: Mapping[str, Score] | None = None
) -> GateDecision:
    """Whether the report's best candidate beats the base, and every further rival, by `gate.margin` on `gate.metric`.

    The best is the one with the best metric, the lower loss breaking ties. The margin is a share of the rival's loss,
    or a difference of exact-match shares; with margin 0 the candidate must still be strictly better. A failed score
    (an error, a loss that is not finite) never passes. `rivals` maps a name to a score on the same held-out set.
    """
    bars = {"the base": report.base, **(rivals or {})}
    failed = [s.label for s in report.scores[1:] if not is_sound(s, gate.metric)]
    note = f"; failed and left out: {', '.join(failed)}" if failed else ""
    sound = [s for s in report.scores[1:] if is_sound(s, gate.metric)]
    if not sound:
        return GateDecision(False, "", gate.metric, f"no candidate has a finite score{note}")
    best = min(sound, key=lambda s: (_cost(gate.metric, s), s.heldout_loss))
    reasons, passed = [], True
    for name, bar in bars.items():
        won, words = _compare(gate, best, name, bar)
        passed = passed and won
        reasons.append(words)
    return GateDecision(passed, best.candidate, gate.metric, "; ".join(reasons) + note)


def is_sound(score: Score, metric: str = "heldout_loss") -> bool:
    """Whether a score may be compared on `metric`. The loss must be finite whatever the metric."""
    return (
        not score.error
        and math.isfinite(score.heldout_loss)
        and math.isfinite(_cost(metric, score))
    )


def _cost(metric: str, score: Score) -> float:
    return score.heldout_loss if metric == "heldout_loss" else -score.exact_match


def _compare(gate: GateConfig, best: Score, name: str, bar: Score) -> tuple[bool, str]:
    """Whether `best` beats one rival, and the numbers in words."""
    if not is_sound(bar, gate.metric):
        return False, f"{name} has no finite score to compare {best.label} with"
    if gate.metric == "heldout_loss":
        gain = (
            (bar.heldout_loss - best.heldout_loss) / bar.heldout_loss if bar.heldout_loss else 0.0
        )
        numbers = f"held-out loss {best.heldout_loss:.4f} against {bar.heldout_loss:.4f}"
        change, needed = (
            f"{abs(gain):.1%} {'lower' if gain >= 0 else 'higher'}",
            f"{gate.margin:.1%} lower",
        )
    else:
        gain = best.exact_match - bar.exact_match
        numbers = f"exact match {best.exact_match:.1%} against {bar.exact_match:.1%}"
        change, needed = f"{100 * gain:+.1f} points", f"{100 * gate.margin:+.1f} points"
    won = gain > 0 and gain >= gate.margin - _ROUNDING
    verdict = (
        f"{best.label} beats {name}" if won else f"{best.label} does not beat {name} by the margin"
    )
    return won, f"{verdict}: {numbers}, {change} (needs {needed})"
