"""The fast path of rendering, used for nearly all rows of a dataset.

A conversation of plain text turns is fixed segments of the template with its contents between. Once
a template is compiled for a shape of conversation, its rows are rendered by joining strings, and
their spans follow from lengths. Everything here is optional: a renderer without it gives the same
tokens and masks from `assistant_spans` and `prompt_prefix`, several times slower.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.chat.compiled.compiler import TemplateCompiler
from pipelines.chat.compiled.segments import CompiledTemplate
from pipelines.chat.encoder import Encoder
from pipelines.chat.prompt_prefix import has_masked_ids_before
from pipelines.chat.rendered import RenderedBatch, RenderedText
from pipelines.chat.spans import ByteSpans, RenderedSpans
from pipelines.chat.template import MARKS
from pipelines.core.conversation import Turn


class CompiledTemplates:
    """One chat template, compiled once for each shape of conversation that it meets.

    `locate` is the general path (`AssistantSpanFinder.locate`), which proves what is compiled.
    `roles` are those that the template takes as they are, without fallbacks.
    """

    def __init__(
        self,
        source: str,
        variables: Mapping[str, Any],
        locate: Callable[[list[dict[str, Any]]], RenderedSpans],
        stop: str | None,
        encoder: Encoder,
        roles: Collection[str],
    ) -> None:
        self._compiler = TemplateCompiler(source, variables, locate, stop)
        self._encoder = encoder
        self._special_tokens = encoder.special_tokens
        self._roles = roles
        self._compiled: dict[tuple[Any, ...], CompiledTemplate | None] = {}
        self._prompt_tails: dict[str, np.ndarray] = {}

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
        for answer in compiled.answers:
            turn = turns[answer.turn]
            if turn.train and turn.weight:
                # `lead` counts characters, but of ASCII text, so bytes too.
                start, end = at[answer.first] - answer.lead, at[answer.last] + answer.tail_bytes
                label_spans += start, end, turn.weight
        context_spans: list[int] = []
        for i in compiled.context_segments:
            context_spans += at[i], at[i + 1]
        prompt = compiled.prompt
        if prompt is None:
            return RenderedText(text, at[-1], ByteSpans(label_spans, context_spans))
        spans = ByteSpans(label_spans, context_spans, at[prompt.count] + prompt.num_bytes)
        return RenderedText(text, at[-1], spans, None, prompt.tail)

    def begin_with_prompts(self, batch: RenderedBatch, rows: Sequence[int]) -> dict[int, bool]:
        """For rows rendered here: True if the row begins with its generation prompt.

        The tokenizer cuts every text at its special tokens, so prompt and row have the same ids up
        to the last special token of the prompt. Only the ids of the prompt's fixed tail from that
        token on must be compared, and these are the same for all rows. Prompts whose tail has no
        special token are encoded, all together.
        """
        answers: dict[int, bool] = {}
        prompts: dict[int, str] = {}
        counts = batch.masks.num_prompt_tokens.tolist()
        for i in rows:
            rendered = batch.texts[i]
            if rendered is None or rendered.prompt_tail is None:
                continue
            tail = self._tail_ids(rendered.prompt_tail)
            if counts[i] >= 0 and len(tail):
                answers[i] = has_masked_ids_before(batch, i, tail, counts[i])
            else:
                prompts[i] = rendered.text.encode()[: rendered.spans.prompt_end].decode()
        encoded = self._encoder.encode(list(prompts.values()))
        for k, i in enumerate(prompts):
            prompt = encoded.ids[encoded.offsets[k] : encoded.offsets[k + 1]]
            answers[i] = has_masked_ids_before(batch, i, prompt, len(prompt))
        return answers

    def _tail_ids(self, tail: str) -> np.ndarray:
        """Ids of a prompt's fixed tail from its last special token on; none if it has none."""
        if tail not in self._prompt_tails:
            cuts = [match.start() for match in self._special_tokens.pattern.finditer(tail)]
            text = tail[cuts[-1] :] if cuts else ""
            self._prompt_tails[tail] = self._encoder.encode_reference(text)
        return self._prompt_tails[tail]
