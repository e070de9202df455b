"""ChatRenderer: training and serving use the same chat template and the same tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pipelines.chat.compiled import CompiledTemplates
from pipelines.chat.default_templates import default_layout, effective_template, with_choice
from pipelines.chat.encoder import Encoded, Encoder, fastokens_mismatch
from pipelines.chat.fallbacks import TemplateCapabilities
from pipelines.chat.loss_mask import LossMasks, loss_masks
from pipelines.chat.plain_texts import PlainTexts
from pipelines.chat.rendered import Rendered, RenderedBatch, RenderedText
from pipelines.chat.spans import PlainSpans
from pipelines.chat.special_tokens import SpecialTokens, plain_text
from pipelines.chat.template import (
    ROW_FAULTS,
    ChatTemplate,
    Messages,
    TemplateError,
    replace_marks,
)
from pipelines.chat.template_renderer import TemplateRenderer
from pipelines.chat.tokenizer_spec import TokenizerSpec, added_tokens, load_spec
from pipelines.core.artifacts import TemplateChoice
from pipelines.core.conversation import Conversation
from pipelines.core.errors import UserError

_OWN_TEMPLATE = TemplateChoice()


class ChatRenderer:
    """Renders with a base's own chat template and tokenizer. Cheap to pickle: workers rebuild it.

    Tokens have a loss if they are completely inside an assistant's turn: from the end of the
    generation prompt that serving sends there to the token that ends the turn. A token that the
    tokenizer merges across the start of an answer contains prompt text and stays masked.

    `fast` encodes with fastokens. `compiled` False switches the fast path of rendering off, which
    changes nothing but the time.
    """

    def __init__(self, spec: TokenizerSpec, fast: bool = False, compiled: bool = True) -> None:
        self.spec = spec
        self.fast = fast
        self._compiled = compiled
        self.default_layout = "" if spec.template else default_layout(spec)
        self.template = effective_template(spec)
        try:
            templates = [ChatTemplate(self.template.text or "", spec.variables)]
            if self.template.tool_text:
                templates.append(ChatTemplate(self.template.tool_text, spec.variables, no_tools=[]))
            self.special_tokens = SpecialTokens(
                added_tokens(spec),
                spec.named_tokens.values(),
                "\n".join(map(plain_text, templates)),
                "\n".join(template.source for template in templates),
            )
            # The template of conversations with tools comes last, and is mostly that of all.
            self._renderers = [
                TemplateRenderer(template, spec, self.special_tokens, compiled)
                for template in templates
            ]
        except TemplateError as error:
            problem = f"{spec.template_key}: its chat template cannot be used: {error}"
            raise UserError(f"{problem}; set data.chat_template to another") from error
        self.encoder = Encoder(spec, fast, self.special_tokens)
        self._plain_texts = PlainTexts(spec, self.encoder)
        self.stop_ids = self._all_stop_ids()
        self._stops = np.array(self.stop_ids, np.int64)

    @classmethod
    def load(
        cls, base: str, revision: str | None = None, choice: TemplateChoice = _OWN_TEMPLATE
    ) -> ChatRenderer:
        """Read a base's tokenizer and template from a folder or the Hub.

        `choice` replaces the template and gives variables to it. Raises UserError when they cannot
        be read or used.
        """
        return cls(with_choice(load_spec(base, revision), choice))

    def with_fastokens(self, texts: Sequence[str] = ()) -> tuple[ChatRenderer, str | None]:
        """This renderer on fastokens if that gives the same ids for probes and `texts`; else this
        renderer and the reason.
        """
        reason = fastokens_mismatch(self.spec, texts)
        if reason:
            return self, reason
        return ChatRenderer(self.spec, True, self._compiled), None

    def __reduce__(self) -> tuple[Any, ...]:
        return ChatRenderer, (self.spec, self.fast, self._compiled)

    @property
    def tokenizer_digest(self) -> str:
        return self.spec.tokenizer_digest

    @property
    def template_digest(self) -> str:
        return self.template.digest

    @property
    def compiled(self) -> CompiledTemplates | None:
        """The fast path of conversations without tools; None if it is switched off."""
        return self._renderers[0].compiled

    @property
    def capabilities(self) -> TemplateCapabilities:
        """The parts of a conversation that the template renders without a fallback."""
        plain, with_tools = self._renderers[0].capabilities, self._renderers[-1].capabilities
        return replace(with_tools, system=plain.system, thought_key=plain.thought_key)

    @property
    def shows_text_with_calls(self) -> bool:
        """True if the text of a turn with tool calls is rendered; Llama-3.1's template drops it."""
        return self.capabilities.text_with_calls

    @property
    def thought_facts(self) -> dict[str, Any]:
        """How the template's prompt stands to thoughts, for messages: see Thoughts."""
        thoughts = self._renderers[0].thoughts
        return {"tag": thoughts.tag, "opened": thoughts.opened, "switch": thoughts.switch}

    def render(self, conversation: Conversation) -> Rendered:
        """Ids and loss weights of one conversation. Raises TemplateError when it is refused."""
        batch = self.render_batch([conversation])
        if batch.errors:
            raise TemplateError(batch.errors[0])
        return batch[0]

    def render_batch(self, conversations: Sequence[Conversation]) -> RenderedBatch:
        """As `render`, for many conversations encoded together.

        A conversation that cannot be rendered has its error in `errors` and no tokens. Plain text
        has all its tokens in the loss.
        """
        texts: list[RenderedText | None] = []
        errors: dict[int, str] = {}
        for i, conversation in enumerate(conversations):
            try:
                texts.append(None if conversation.is_text else self._render_text(conversation))
            except ROW_FAULTS as error:  # TemplateError among them: any fault costs its row only
                texts.append(None)
                refused = isinstance(error, TemplateError)
                errors[i] = str(error) if refused else f"cannot be rendered: {error}"
        rendered = [text for text in texts if text and not text.injection]
        if len(rendered) < len(texts):
            return self._encode_singly(conversations, texts, errors)
        encoded = self.encoder.encode(
            [text.text for text in rendered], [text.num_bytes for text in rendered]
        )
        masks = loss_masks(encoded, [text.spans for text in rendered], self._stops)
        return RenderedBatch(encoded.ids, masks, encoded.offsets, errors)

    def prompt_ids(self, messages: Messages, tools: Sequence[Mapping[str, Any]] = ()) -> np.ndarray:
        """Generation prompt of OpenAI-style messages, int32 [T].

        Raises TemplateError when the template refuses them.
        """
        messages = [replace_marks(m) for m in messages]
        try:
            text, injection = self._renderer_for(tools).prompt(messages, tools)
            if injection:
                return self._encode_protected(text, injection).ids
            return self.encoder.encode([text]).ids
        except UnicodeEncodeError as error:
            raise TemplateError(
                f"the messages contain text that is not Unicode ({error.reason})"
            ) from error

    def text(self, conversation: Conversation) -> str:
        """The complete rendered text. Raises TemplateError when the template refuses it."""
        if conversation.is_text:
            return conversation.turns[0].content
        return self._render_text(conversation).text

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

    def _all_stop_ids(self) -> tuple[int, ...]:
        """Ids that end an answer: the template's ends, the tokenizer's end, the generation's."""
        ids = [stop for renderer in self._renderers for stop in renderer.ends.stop_ids]
        end = self.spec.named_tokens.get("eos_token")
        if end in self.special_tokens.ids:
            ids.append(self.special_tokens.ids[end])
        return tuple(dict.fromkeys([*ids, *self.spec.extra_stop_ids]))

    def _renderer_for(self, tools: Sequence[Any]) -> TemplateRenderer:
        return self._renderers[-1 if tools else 0]

    def _render_text(self, conversation: Conversation) -> RenderedText:
        return self._renderer_for(conversation.tools).render(conversation)

    def _encode_protected(self, text: str, spans: PlainSpans) -> Encoded:
        return self.encoder.encode_protected(text, spans.special, spans.markers)

    def _encode_singly(
        self,
        conversations: Sequence[Conversation],
        texts: Sequence[RenderedText | None],
        errors: dict[int, str],
    ) -> RenderedBatch:
        """A batch in which some conversations have errors, spell special tokens or are plain text,
        one by one.
        """
        ids, masks, counts = [np.empty(0, np.int32)], [LossMasks.empty(0)], []
        for i, text in enumerate(texts):
            own_ids, mask = np.empty(0, np.int32), LossMasks.empty(1)
            try:
                if conversations[i].is_text:
                    own_ids, mask = self._plain_texts.encode(conversations[i].turns[0])
                elif text is not None:
                    encoded = (
                        self._encode_protected(text.text, text.injection)
                        if text.injection
                        else self.encoder.encode([text.text])
                    )
                    own_ids, mask = encoded.ids, loss_masks(encoded, [text.spans], self._stops)
            except (TemplateError, UnicodeEncodeError) as error:
                errors[i] = str(error)
            ids.append(own_ids)
            masks.append(mask)
            counts.append(len(own_ids))
        offsets = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
        return RenderedBatch(np.concatenate(ids), LossMasks.concatenate(masks), offsets, errors)
