"""The gate: whether a candidate may be promoted, decided from the scores of a report."""

from __future__ import annotations

import math
from collections.abc import Mapping

from pipelines.config.schema import GateConfig
from pipelines.core.artifacts import EvalReport, GateDecision, Score

_ROUNDING = 1e-12  # in floating point 0.55 - 0.5 is slightly less than 0.05


def decide(
    gate: GateConfig, report: EvalReport, rivals: Mapping[str, Score] | None = None
) -> GateDecision:
    """Compare the report's best candidate with the base and with every further rival.

    The best candidate has the best `gate.metric`; of equal ones, the lower loss. It passes if it
    beats each rival by `gate.margin`: a share of the rival's held-out loss, or a difference of
    exact-match shares. With margin 0 it must still be strictly better. A failed score (an error or
    a loss that is not finite) never passes. `rivals` maps a name to a score on the same held-out
    set.
    """
    all_rivals = {"the base": report.base, **(rivals or {})}
    failed = [s.label for s in report.scores[1:] if not is_comparable(s, gate.metric)]
    note = f"; failed and left out: {', '.join(failed)}" if failed else ""
    candidates = [s for s in report.scores[1:] if is_comparable(s, gate.metric)]
    if not candidates:
        return GateDecision(False, "", gate.metric, f"no candidate has a finite score{note}")
    best = min(candidates, key=lambda s: (_cost(gate.metric, s), s.heldout_loss))
    reasons, passed = [], True
    for name, rival in all_rivals.items():
        beaten, reason = _compare(gate, best, name, rival)
        passed = passed and beaten
        reasons.append(reason)
    return GateDecision(passed, best.candidate, gate.metric, "; ".join(reasons) + note)


def is_comparable(score: Score, metric: str = "heldout_loss") -> bool:
    """True if a score has no error, a finite loss (whatever the metric) and a finite `metric`."""
    return (
        not score.error
        and math.isfinite(score.heldout_loss)
        and math.isfinite(_cost(metric, score))
    )


def _cost(metric: str, score: Score) -> float:
    """The metric as a number of which less is better."""
    return score.heldout_loss if metric == "heldout_loss" else -score.exact_match


def _compare(gate: GateConfig, best: Score, name: str, rival: Score) -> tuple[bool, str]:
    """(True if `best` beats a rival by the margin, a sentence with the numbers)."""
    if not is_comparable(rival, gate.metric):
        return False, f"{name} has no finite score to compare {best.label} with"
    if gate.metric == "heldout_loss":
        drop = rival.heldout_loss - best.heldout_loss
        gain = drop / rival.heldout_loss if rival.heldout_loss else 0.0
        numbers = f"held-out loss {best.heldout_loss:.4f} against {rival.heldout_loss:.4f}"
        change = f"{abs(gain):.1%} {'lower' if gain >= 0 else 'higher'}"
        needed = f"{gate.margin:.1%} lower"
    else:
        gain = best.exact_match - rival.exact_match
        numbers = f"exact match {best.exact_match:.1%} against {rival.exact_match:.1%}"
        change, needed = f"{100 * gain:+.1f} points", f"{100 * gate.margin:+.1f} points"
    beaten = gain > 0 and gain >= gate.margin - _ROUNDING
    if beaten:
        verdict = f"{best.label} beats {name}"
    else:
        verdict = f"{best.label} does not beat {name} by the margin"
    return beaten, f"{verdict}: {numbers}, {change} (needs {needed})"
