"""The gate: which candidate passes, by how much, and the reason it gives."""

from __future__ import annotations

import math

import pytest

from pipelines.config.schema import GateConfig
from pipelines.core.artifacts import ArtifactRef, EvalReport, Score
from pipelines.eval.gate import decide

REF = ArtifactRef("evals", "k", "d", "uri")


def score(label: str, loss: float, exact: float = 0.0, error: str = "") -> Score:
    return Score(
        label if label == "base" else f"digest of {label}", label, loss, exact, 10, 100, (), error
    )


def report(*scores: Score) -> EvalReport:
    return EvalReport(REF, scores, "h" * 64)


def test_the_lowest_loss_wins_and_the_reason_has_the_numbers() -> None:
    decision = decide(
        GateConfig(margin=0.1),
        report(score("base", 2.0), score("step 10", 1.7), score("step 20", 1.5)),
    )
    assert decision.passed and decision.candidate == "digest of step 20"
    assert decision.reason == (
        "step 20 beats the base: held-out loss 1.5000 against 2.0000, 25.0% lower "
        "(needs 10.0% lower)"
    )


@pytest.mark.parametrize(
    ("loss", "margin", "passes"),
    [
        (1.8, 0.1, True),
        (1.801, 0.1, False),
        (1.999, 0.0, True),
        (2.0, 0.0, False),
        (2.1, 0.0, False),
        (2.1, 0.1, False),
    ],
)
def test_the_margin_is_a_share_of_the_bases_loss(loss: float, margin: float, passes: bool) -> None:
    decision = decide(
        GateConfig(margin=margin), report(score("base", 2.0), score("step 10", loss, exact=1.0))
    )
    assert decision.passed is passes
    assert ("does not beat the base by the margin" in decision.reason) is not passes
    assert decision.candidate == "digest of step 10"


@pytest.mark.parametrize(
    ("base", "exact", "margin", "passes"),
    [
        (0.5, 0.55, 0.05, True),
        (0.5, 0.549, 0.05, False),
        (0.5, 0.5, 0.0, False),
        (0.5, 0.4, 0.0, False),
        (0, 0.9, 0.9, True),
    ],
)
def test_exact_match_needs_a_difference_of_shares(
    base: float, exact: float, margin: float, passes: bool
) -> None:
    gate = GateConfig(metric="exact_match", margin=margin)
    decision = decide(gate, report(score("base", 2.0, base), score("step 10", 3.0, exact)))
    assert decision.passed is passes and decision.metric == "exact_match"


def test_equal_exact_match_is_decided_by_the_lower_loss() -> None:
    gate = GateConfig(metric="exact_match", margin=0.1)
    tied = report(
        score("base", 2.0), score("a", 0.9, 0.8), score("b", 0.7, 0.8), score("c", 0.1, 0.7)
    )
    assert decide(gate, tied).candidate == "digest of b"


@pytest.mark.parametrize("metric", ["heldout_loss", "exact_match"])
@pytest.mark.parametrize(
    "bad",
    [
        score("bad", math.nan, 1.0),
        score("bad", -math.inf, 1.0),
        score("bad", math.inf, 1.0),
        score("bad", 0.1, 1.0, "x"),
    ],
)
def test_a_failed_candidate_never_passes_and_is_named(metric: str, bad: Score) -> None:
    gate = GateConfig.model_validate({"metric": metric, "margin": 0.1})
    alone = decide(gate, report(score("base", 2.0), bad))
    assert not alone.passed and alone.candidate == ""
    assert alone.reason == "no candidate has a finite score; failed and left out: bad"
    with_another = decide(gate, report(score("base", 2.0), bad, score("good", 1.0, 0.5)))
    assert (
        with_another.passed
        and with_another.candidate == "digest of good"
        and "left out: bad" in with_another.reason
    )


@pytest.mark.parametrize(
    "base", [score("base", math.nan), score("base", 2.0, 0.0, "out of memory")]
)
def test_no_candidate_passes_against_a_failed_base(base: Score) -> None:
    decision = decide(GateConfig(margin=0.1), report(base, score("step 10", 1.0)))
    assert not decision.passed and "the base has no finite score" in decision.reason


def test_a_report_without_answers_can_pass_by_its_loss_only() -> None:
    no_answers = report(score("base", 2.0, math.nan), score("step 10", 1.0, math.nan))
    assert decide(GateConfig(metric="heldout_loss", margin=0.1), no_answers).passed
    assert not decide(GateConfig(metric="exact_match", margin=0.1), no_answers).passed


def test_every_further_rival_must_be_beaten_too() -> None:
    both = report(score("base", 2.0), score("step 10", 1.0))
    strong, weak = {"production bot@1": score("p", 0.99)}, {"production bot@1": score("p", 1.5)}
    rejected = decide(GateConfig(margin=0.1), both, strong)
    assert not rejected.passed and "step 10 beats the base" in rejected.reason
    assert (
        "does not beat production bot@1 by the margin: "
        "held-out loss 1.0000 against 0.9900, 1.0% higher" in rejected.reason
    )
    assert decide(GateConfig(margin=0.1), both, weak).passed
