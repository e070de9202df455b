"""The report's pages: the same scores as Markdown and as HTML, with failed models and any text."""

from __future__ import annotations

import math

from pipelines.core.artifacts import Answer, Score
from pipelines.eval.report_page import as_html, as_markdown

FACTS = {"recipe": "r", "base": "org/name", "heldout_digest": "d" * 64}
PROMPT = "Say <script>hi</script>\n\n# not a heading"


def score(label: str, loss: float, exact: bool) -> Score:
    answer = Answer("s0", PROMPT, "yes", "yes" if exact else "<b>no</b>", exact)
    return Score(label, label, loss, float(exact), 1, 12_345, (answer,), "")


SCORES = [
    score("base", 2.5, exact=False),
    score("step 10", 0.25, exact=True),
    Score("x", "step 20", math.nan, math.nan, 0, 0, (), "RuntimeError: size <mismatch>"),
]


def test_the_html_page_escapes_every_text_and_shows_which_answers_are_exact() -> None:
    text = as_html(FACTS, SCORES)
    assert "<script" not in text and "&lt;script&gt;hi&lt;/script&gt;" in text
    assert 'class="text exact">✓ yes<' in text
    assert 'class="text differs">✗ &lt;b&gt;no&lt;/b&gt;<' in text
    assert "d" * 12 in text and "d" * 13 not in text


def test_a_failed_model_has_its_error_and_neither_a_bar_nor_a_column_of_answers() -> None:
    text = as_html(FACTS, SCORES)
    assert "RuntimeError: size &lt;mismatch&gt;" in text
    assert text.count("<svg") == 2 and "base: 2.5000" in text and "step 10: 0.2500" in text
    assert "step 20: " not in text and 'scope="col">step 20<' not in text
    assert ">error<" not in as_html(FACTS, SCORES[:2])


def test_a_report_whose_models_all_failed_is_still_a_page() -> None:
    text = as_html(FACTS, [SCORES[2]])
    assert "<svg" not in text and "size &lt;mismatch&gt;" in text


def test_the_markdown_has_every_score_and_no_text_that_could_be_formatting() -> None:
    lines = as_markdown(FACTS, SCORES).splitlines()
    assert "| step 10 | 0.2500 | 100.0% | 1 | 12,345 |" in lines
    assert "| step 20 | failed | - | 0 | 0 |" in lines
    assert "step 20 failed: `RuntimeError: size <mismatch>`" in lines
    assert "    # not a heading" in lines and "# not a heading" not in lines
    assert "    step 10 =: yes" in lines and "    base ≠: <b>no</b>" in lines
