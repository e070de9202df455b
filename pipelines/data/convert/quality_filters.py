"""Quality rules: an expression over a row's measures, such as `answer_chars >= 2 and unique_word_share > 0.2`."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipelines.core.conversation import Conversation
from pipelines.core.errors import UserError

_MEASURES: Mapping[str, Callable[[str, str, Conversation], float]] = {
    "prompt_chars": lambda prompt, answer, talk: len(prompt),
    "answer_chars": lambda prompt, answer, talk: len(answer),
    "answer_words": lambda prompt, answer, talk: len(answer.split()),
    "answer_lines": lambda prompt, answer, talk: answer.count("\n") + 1,
    "num_turns": lambda prompt, answer, talk: len(talk.turns),
    "unique_word_share": lambda prompt, answer, talk: (
        len(set(answer.split())) / max(1, len(answer.split()))
    ),
    "letter_share": lambda prompt, answer, talk: (
        sum(map(str.isalpha, answer)) / max(1, len(answer))
    ),
    "ascii_share": lambda prompt, answer, talk: sum(map(str.isascii, answer)) / max(1, len(answer)),
    "longest_word_chars": lambda prompt, answer, talk: max(map(len, answer.split()), default=0),
    "repeats_prompt": lambda prompt, answer, talk: float(answer.strip() == prompt.strip()),
}
_ALLOWED = (
    ast.Expression, ast.BoolOp, ast.And, ast.Or, ast.UnaryOp, ast.Not, ast.USub, ast.BinOp, ast.Add, ast.Sub, ast.Mult,
    ast.Div, ast.Compare, ast.Lt, ast.LtE, ast.Gt, ast.GtE, ast.Eq, ast.NotEq, ast.Name, ast.Load, ast.Constant,
)  # fmt: skip


class Rules:
    """The recipe's `data.keep`. Raises UserError for an expression that is no such rule, listing the measures."""

    def __init__(self, expressions: Sequence[str]) -> None:
        self._rules = [(text, *_compiled(text)) for text in expressions]

    def broken_by(self, conversation: Conversation) -> str | None:
        """The first rule that a conversation does not fulfil, or None."""
        if not self._rules:
            return None
        answer = "\n".join(t.content for t in conversation.turns if t.role == "assistant")
        prompt = "\n".join(t.content for t in conversation.turns if t.role == "user")
        for text, code, names in self._rules:
            values: dict[str, Any] = {
                name: _MEASURES[name](prompt, answer, conversation) for name in names
            }
            try:
                # The tree holds nothing but numbers, measures and arithmetic: see _compiled.
                kept = eval(code, {"__builtins__": {}}, values)
            except ArithmeticError:
                kept = False
            if not kept:
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
            raise UserError(f"data.keep: {text!r} holds {ast.unparse(node)!r}; {advice}")
    unknown = [name for name in names if name not in _MEASURES]
    if unknown:
        raise UserError(f"data.keep: {text!r}: unknown measure {unknown[0]}; {advice}")
    return compile(tree, "data.keep", "eval"), names
