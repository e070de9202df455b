"""Quality filters: expressions over a row's measures.

An example is `answer_chars >= 2 and unique_word_share > 0.2`.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipelines.core.conversation import Conversation
from pipelines.core.errors import UserError

_MEASURES: Mapping[str, Callable[[str, str, Conversation], float]] = {
    "prompt_chars": lambda prompt, answer, conversation: len(prompt),
    "answer_chars": lambda prompt, answer, conversation: len(answer),
    "answer_words": lambda prompt, answer, conversation: len(answer.split()),
    "answer_lines": lambda prompt, answer, conversation: answer.count("\n") + 1,
    "num_turns": lambda prompt, answer, conversation: len(conversation.turns),
    "unique_word_share": lambda prompt, answer, conversation: (
        len(set(answer.split())) / max(1, len(answer.split()))
    ),
    "letter_share": lambda prompt, answer, conversation: (
        sum(map(str.isalpha, answer)) / max(1, len(answer))
    ),
    "ascii_share": lambda prompt, answer, conversation: (
        sum(map(str.isascii, answer)) / max(1, len(answer))
    ),
    "longest_word_chars": lambda prompt, answer, conversation: max(
        map(len, answer.split()), default=0
    ),
    "repeats_prompt": lambda prompt, answer, conversation: float(answer.strip() == prompt.strip()),
}
_ALLOWED = (
    ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.BinOp,
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Compare, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq,
    ast.NotEq, ast.Name, ast.Load, ast.Constant,
)  # fmt: skip


class QualityFilters:
    """The recipe's `data.keep`. Raises UserError, with the measures, for an invalid expression."""

    def __init__(self, expressions: Sequence[str]) -> None:
        self._filters = [(text, *_compiled(text)) for text in expressions]

    def first_failed(self, conversation: Conversation) -> str | None:
        """The first expression that is false for a conversation, or None."""
        if not self._filters:
            return None
        answers = [t for t in conversation.turns if t.role in ("assistant", "text")]
        answer = "\n".join(t.content for t in answers)
        prompt = "\n".join(t.content for t in conversation.turns if t.role == "user")
        for text, code, names in self._filters:
            values: dict[str, Any] = {
                name: _MEASURES[name](prompt, answer, conversation) for name in names
            }
            try:
                # Safe: _compiled admits numbers, measures, comparisons and arithmetic only.
                passes = eval(code, {"__builtins__": {}}, values)
            except ArithmeticError:
                passes = False
            if not passes:
                return text
        return None


def _compiled(text: str) -> tuple[Any, list[str]]:
    advice = f"use numbers, comparisons, and/or/not and these measures: {', '.join(_MEASURES)}"
    try:
        tree = ast.parse(text, mode="eval")
    except SyntaxError as error:
        raise UserError(f"data.keep: {text!r} is not an expression; {advice}") from error
    names = sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)})
    for node in ast.walk(tree):
        number = not isinstance(node, ast.Constant) or isinstance(node.value, int | float)
        if not isinstance(node, _ALLOWED) or not number:
            raise UserError(f"data.keep: {text!r} contains {ast.unparse(node)!r}; {advice}")
    unknown = [name for name in names if name not in _MEASURES]
    if unknown:
        raise UserError(f"data.keep: {text!r}: unknown measure {unknown[0]}; {advice}")
    return compile(tree, "data.keep", "eval"), names
