"""The fast path of rendering, used for nearly all rows of a dataset.

A conversation of plain text turns is fixed segments of the template with its contents between. Once
a template is compiled for a shape of conversation, its rows are rendered by joining strings, and
their spans follow from lengths. Everything here is optional: a renderer without it gives the same
tokens and masks from `assistant_spans`, several times slower.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Sequence
from typing import Any

from pipelines.chat.compiled.compiler import TemplateCompiler
from pipelines.chat.compiled.segments import CompiledTemplate
from pipelines.chat.rendered import RenderedText
from pipelines.chat.spans import LEFT_OUT, ByteSpans
from pipelines.chat.special_tokens import SpecialTokens
from pipelines.chat.template import MARKS
from pipelines.core.conversation import Turn


class CompiledTemplates:
    """One chat template, compiled once for each shape of conversation that it meets.

    `roles` are those that the template takes as they are, without fallbacks.
    """

    def __init__(
        self, compiler: TemplateCompiler, special_tokens: SpecialTokens, roles: Collection[str]
    ) -> None:
        self._compiler = compiler
        self._special_tokens = special_tokens
        self._roles = roles
        self._compiled: dict[tuple[Any, ...], CompiledTemplate | None] = {}

    def compiled_for(
        self, roles: Sequence[str], contents: Sequence[str]
    ) -> CompiledTemplate | None:
        """The compiled template for turns of plain text; None if the template itself must run."""
        shape = (*roles, *[not c for c in contents])
        if shape not in self._compiled:
            self._compiled[shape] = self._compiler.compile(roles, [not c for c in contents])
        compiled = self._compiled[shape]
        if compiled is None or (compiled.conditions and not compiled.accepts(contents)):
            return None
        return compiled

    def render(self, turns: Sequence[Turn]) -> RenderedText | None:
        """The text and spans of a conversation without tools; None if the template must run.

        Kept short and flat, as it runs for nearly every row.
        """
        roles, contents = [], []
        for turn in turns:
            if turn.tool_calls or turn.name or turn.role not in self._roles:
                return None
            if turn.reasoning or turn.masked:
                return None
            content = turn.content
            if self._special_tokens.occur_in(content, turn.role == "assistant"):
                return None
            if not content.isascii() and MARKS.search(content):
                return None
            roles.append(turn.role)
            contents.append(content)
        compiled = self.compiled_for(roles, contents)
        if compiled is None:
            return None
        texts = compiled.fill(contents)
        text = "".join(texts)
        sizes = map(len, texts) if text.isascii() else [len(t.encode()) for t in texts]
        at = [*itertools.accumulate(sizes, initial=0)]
        label_spans: list[float] = []
        num_left_out = 0
        for index, first, first_bytes, last, last_bytes, gap in compiled.answers:
            turn = turns[index]
            if turn.train and turn.weight:
                if gap == LEFT_OUT:
                    num_left_out += 1
                    continue
                label_spans += at[first] + first_bytes, at[last] + last_bytes, turn.weight, gap
        context_spans: list[int] = []
        for i in compiled.context_segments:
            context_spans += at[i], at[i + 1]
        return RenderedText(text, at[-1], ByteSpans(label_spans, context_spans, (), num_left_out))
