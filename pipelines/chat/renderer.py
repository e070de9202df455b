"""ChatRenderer: training and serving use the same chat template and the same tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import numpy as np

from pipelines.chat.assistant_spans import AssistantSpanFinder, find_stop
from pipelines.chat.compiled import CompiledTemplates
from pipelines.chat.default_templates import default_layout, effective_template, with_choice
from pipelines.chat.encoder import Encoded, Encoder, byte_offsets, fastokens_mismatch
from pipelines.chat.fallbacks import (
    TemplateCapabilities,
    apply_fallbacks,
    message_weights,
    probe_capabilities,
)
from pipelines.chat.loss_mask import LossMasks, loss_masks
from pipelines.chat.prompt_prefix import begins_with_prompt
from pipelines.chat.rendered import Rendered, RenderedBatch, RenderedText
from pipelines.chat.spans import ByteSpans, RenderedSpans
from pipelines.chat.special_tokens import InjectionGuard, SpecialTokens, plain_text
from pipelines.chat.template import (
    ROW_FAULTS,
    ChatTemplate,
    Messages,
    TemplateError,
    replace_marks,
    spells_marks,
)
from pipelines.chat.tokenizer_spec import TokenizerSpec, added_tokens, load_spec
from pipelines.core.artifacts import TemplateChoice
from pipelines.core.conversation import Conversation
from pipelines.core.errors import UserError


class ChatRenderer:
    """Renders with a base's own chat template and tokenizer. Cheap to pickle: workers rebuild it.

    Tokens have a loss if they are completely inside an assistant turn's text or its stop token. A
    token that the tokenizer merges across the start of an answer contains prompt text and stays
    masked.

    `fast` encodes with fastokens. `compiled` False switches the fast path of rendering off, which
    changes nothing but the time. `for_tools`: every conversation has tools.
    """

    def __init__(
        self,
        spec: TokenizerSpec,
        fast: bool = False,
        compiled: bool = True,
        for_tools: bool = False,
    ) -> None:
        self.spec, self.fast = spec, fast
        self.default_layout = "" if spec.template else default_layout(spec)
        self.template = effective_template(spec)
        source = self.template.text or ""
        try:
            template = ChatTemplate(source, spec.variables, [] if for_tools else None)
            self.special_tokens = SpecialTokens(
                added_tokens(spec), spec.named_tokens.values(), plain_text(template), source
            )
            self.encoder = Encoder(spec, fast, self.special_tokens)
            stop = find_stop(template, self.special_tokens)
        except TemplateError as error:
            problem = f"{spec.template_key}: its chat template cannot be used: {error}"
            raise UserError(f"{problem}; set data.chat_template to another") from error
        self._tool_renderer: ChatRenderer | None = None
        if spec.tool_template:
            tool_spec = replace(spec, template=spec.tool_template, tool_template=None)
            self._tool_renderer = ChatRenderer(tool_spec, fast, False, for_tools=True)
        self.stop_ids = self._all_stop_ids(stop)
        self._stops = np.array(self.stop_ids, np.int64)
        self._template = template
        self._finder = AssistantSpanFinder(template, stop[0] if stop else None)
        self._guard = InjectionGuard(template, self.special_tokens)
        self._capabilities = probe_capabilities(template)
        self.compiled: CompiledTemplates | None = None
        if compiled:
            system = ["system"] if self._capabilities.system else []
            self.compiled = CompiledTemplates(
                source,
                spec.variables,
                self._finder.locate,
                stop[0] if stop else None,
                self.encoder,
                {"user", "assistant", *system},
            )

    @classmethod
    def load(
        cls, base: str, revision: str | None = None, choice: TemplateChoice | None = None
    ) -> ChatRenderer:
        """Read a base's tokenizer and template from a folder or the Hub.

        `choice` replaces the template and gives variables to it. Raises UserError when they cannot
        be read or used.
        """
        return cls(with_choice(load_spec(base, revision), choice or TemplateChoice()))

    def with_fastokens(self, texts: Sequence[str] = ()) -> tuple[ChatRenderer, str | None]:
        """This renderer on fastokens if that gives the same ids for probes and `texts`; else this
        renderer and the reason.
        """
        reason = fastokens_mismatch(self.spec, texts)
        if reason:
            return self, reason
        return ChatRenderer(self.spec, True, self.compiled is not None), None

    def __reduce__(self) -> tuple[Any, ...]:
        return ChatRenderer, (self.spec, self.fast, self.compiled is not None)

    @property
    def tokenizer_digest(self) -> str:
        return self.spec.tokenizer_digest

    @property
    def template_digest(self) -> str:
        return self.template.digest

    @property
    def capabilities(self) -> TemplateCapabilities:
        """The parts of a conversation that the template renders without a fallback."""
        own, with_tools = self._capabilities, self._renderer_for(True)._capabilities
        return replace(with_tools, system=own.system)

    @property
    def shows_text_with_calls(self) -> bool:
        """True if the text of a turn with tool calls is rendered; Llama-3.1's template drops it."""
        return self.capabilities.text_with_calls

    def render(self, conversation: Conversation) -> Rendered:
        """Ids and loss weights of one conversation. Raises TemplateError when it is refused."""
        batch = self.render_batch([conversation])
        if batch.errors:
            raise TemplateError(batch.errors[0])
        return batch[0]

    def render_batch(self, conversations: Sequence[Conversation]) -> RenderedBatch:
        """As `render`, for many conversations encoded together.

        A conversation that cannot be rendered has its error in `errors` and no tokens.
        """
        if self._tool_renderer and any(c.tools for c in conversations):
            runs = groupby(conversations, lambda conversation: bool(conversation.tools))
            return RenderedBatch.concatenate(
                [self._renderer_for(tools).render_batch([*run]) for tools, run in runs]
            )
        texts: list[RenderedText | None] = []
        errors: dict[int, str] = {}
        for i, conversation in enumerate(conversations):
            try:
                texts.append(self._render_text(conversation))
            except ROW_FAULTS as error:  # TemplateError among them: any fault costs its row only
                texts.append(None)
                refused = isinstance(error, TemplateError)
                errors[i] = str(error) if refused else f"cannot be rendered: {error}"
        if errors or any(text.injection for text in texts if text):
            return self._encode_singly(texts, errors)
        rendered = [text for text in texts if text]
        encoded = self.encoder.encode(
            [text.text for text in rendered], [text.num_bytes for text in rendered]
        )
        masks = loss_masks(encoded, [text.spans for text in rendered], self._stops)
        return RenderedBatch(encoded.ids, masks, encoded.offsets, errors, texts)

    def prompt_ids(self, messages: Messages, tools: Sequence[Mapping[str, Any]] = ()) -> np.ndarray:
        """Generation prompt of OpenAI-style messages, int32 [T].

        Raises TemplateError when the template refuses them.
        """
        if tools and self._tool_renderer:
            return self._tool_renderer.prompt_ids(messages, tools)
        messages = [replace_marks(m) for m in messages]
        messages, tools, _ = apply_fallbacks(messages, tools, self._capabilities)
        try:
            if self._guard.contains_special_tokens(messages, tools):
                spans = self._finder.locate(messages, tools, prompt=True)
                return self._encode_protected(
                    self._guard.protect(spans, messages, tools, prompt=True)
                ).ids
            return self.encoder.encode(
                [self._template.render(messages, tools, prompt=True).text]
            ).ids
        except UnicodeEncodeError as error:
            raise TemplateError(
                f"the messages contain text that is not Unicode ({error.reason})"
            ) from error

    def begin_with_prompts(
        self, conversations: Sequence[Conversation], batch: RenderedBatch, rows: Sequence[int]
    ) -> list[bool | None]:
        """For each of `rows`, whether it begins with the generation prompt of its last answer, that
        prompt's last token masked; None when it has no prompt.
        """
        quick = self.compiled.begin_with_prompts(batch, rows) if self.compiled else {}
        return [
            quick[i] if i in quick
            else begins_with_prompt(conversations[i], batch, i, self.prompt_ids)
            for i in rows
        ]  # fmt: skip

    def text(self, conversation: Conversation) -> str:
        """The complete rendered text. Raises TemplateError when the template refuses it."""
        own = self._renderer_for(bool(conversation.tools))
        messages, tools, _ = apply_fallbacks(
            conversation.messages(), conversation.tools, own._capabilities
        )
        return own._template.render(messages, tools).text

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special_tokens: bool = True) -> str:
        """Text of token ids, without special tokens unless `skip_special_tokens` is False."""
        return self.encoder.decode(ids, skip_special_tokens)

    def decode_each(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """The text of every token by itself, for display."""
        return [self.encoder.decode_token(token) for token in ids]

    def check_fastokens(self, conversation: Conversation) -> None:
        """Compare fastokens with the tokenizers library on one conversation.

        Raises UserError when their ids differ.
        """
        self.encoder.check_fastokens(self.text(conversation))

    def _all_stop_ids(self, stop: tuple[str, int] | None) -> tuple[int, ...]:
        """Ids that end an answer: the template's stop, the tokenizer's end, the generation's."""
        ids = [stop[1]] if stop else []
        end = self.spec.named_tokens.get("eos_token")
        if end in self.special_tokens.ids:
            ids.append(self.special_tokens.ids[end])
        with_tools = self._tool_renderer.stop_ids if self._tool_renderer else ()
        return tuple(dict.fromkeys([*ids, *self.spec.extra_stop_ids, *with_tools]))

    def _renderer_for(self, tools: bool) -> ChatRenderer:
        """The renderer of conversations with tools, or of those without."""
        return self._tool_renderer if tools and self._tool_renderer else self

    # -- text and spans --------------------------------------------------------------------------

    def _render_text(self, conversation: Conversation) -> RenderedText:
        turns, tools = conversation.turns, conversation.tools
        if self.compiled and not tools:
            rendered = self.compiled.render(turns)
            if rendered is not None:
                return rendered
        messages = conversation.messages()
        if spells_marks([messages, tools]):
            raise TemplateError("the text contains a Unicode noncharacter of U+FDD0 to U+FDD3")
        messages, tools, message_index = apply_fallbacks(messages, tools, self._capabilities)
        weights = message_weights(turns, message_index, len(messages))
        spans = self._finder.locate(messages, tools)
        to_byte = byte_offsets(spans.text)
        label_spans: list[float] = []
        for i, start, end in sorted(spans.assistant_spans, key=lambda span: span[1]):
            if weights[i]:
                label_spans += int(to_byte[start]), int(to_byte[end]), weights[i]
        context = np.array(spans.context_spans, np.int64).reshape(-1)
        injection = None
        if self._guard.contains_special_tokens(messages, tools):
            injection = self._guard.protect(spans, messages, tools)
        byte_spans = ByteSpans(label_spans, to_byte[context].tolist())
        return RenderedText(spans.text, int(to_byte[-1]), byte_spans, injection)

    def _encode_protected(self, spans: RenderedSpans) -> Encoded:
        return self.encoder.encode_protected(
            spans.text, spans.content_spans or (), spans.context_spans
        )

    def _encode_singly(
        self, texts: Sequence[RenderedText | None], errors: dict[int, str]
    ) -> RenderedBatch:
        """A batch in which some conversations have errors or spell special tokens, one by one."""
        ids, masks, counts = [np.empty(0, np.int32)], [LossMasks.empty(0)], []
        for i, text in enumerate(texts):
            count, mask = 0, LossMasks.empty(1)
            if text is not None:
                try:
                    encoded = (
                        self._encode_protected(text.injection)
                        if text.injection
                        else self.encoder.encode([text.text])
                    )
                    mask = loss_masks(encoded, [text.spans], self._stops)
                    ids.append(encoded.ids)
                    count = len(encoded.ids)
                except TemplateError as error:
                    errors[i] = str(error)
            masks.append(mask)
            counts.append(count)
        offsets = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
        return RenderedBatch(
            np.concatenate(ids), LossMasks.concatenate(masks), offsets, errors, texts
        )
