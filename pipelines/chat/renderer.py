"""ChatRenderer: what training sees and what serving sends come from the same template and the same tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.chat.encoder import Encoder, byte_offsets
from pipelines.chat.formats import ALPACA_TEMPLATE
from pipelines.chat.template import MARKS, ChatTemplate, Messages, Span, TemplateError
from pipelines.chat.tokenizer import TokenizerSpec, load_spec
from pipelines.contracts import Conversation, UserError


@dataclass(frozen=True)
class Rendered:
    """Token ids int32 [T] and loss weights float32 [T]; weight 0 masks a token."""

    input_ids: np.ndarray
    loss_weights: np.ndarray

    @property
    def num_loss_tokens(self) -> int:
        return int(np.count_nonzero(self.loss_weights))


@dataclass(frozen=True)
class _Layout:
    """A rendered text, the trained spans with their weights, and what is data; all in characters."""

    text: str
    trained: list[tuple[Span, float]]
    contents: dict[int, Span]
    unsafe: bool


class ChatRenderer:
    """Renders with the base's own chat template and tokenizer; cheap to pickle, rebuilt where it arrives.

    Trained tokens are those that lie wholly inside an assistant turn's text or its stop token. A token that the
    tokenizer merges across the start of a trained span also holds prompt text and stays masked.
    """

    def __init__(self, spec: TokenizerSpec) -> None:
        self.spec = spec
        self._encoder = Encoder(spec)
        try:
            self._template = ChatTemplate(spec.template or ALPACA_TEMPLATE, spec.named_tokens)
        except TemplateError as error:
            raise UserError(f"model.base: {error}") from error
        self._stop_text = self._find_stop_text()
        self.stop_ids = self._find_stop_ids()

    @classmethod
    def load(cls, base: str, revision: str | None = None) -> ChatRenderer:
        """Read a base's tokenizer and template from a folder or the Hub. Raises UserError when it cannot."""
        return cls(load_spec(base, revision))

    def __reduce__(self) -> tuple[Any, ...]:
        return ChatRenderer, (self.spec,)

    @property
    def tokenizer_digest(self) -> str:
        return self.spec.tokenizer_digest

    @property
    def template_digest(self) -> str:
        return self.spec.template_digest

    def render(self, conversation: Conversation) -> Rendered:
        """Ids and loss weights of one conversation. Raises TemplateError when the template refuses it."""
        rendered = self.render_batch([conversation])[0]
        if isinstance(rendered, TemplateError):
            raise rendered
        return rendered

    def render_batch(self, conversations: Sequence[Conversation]) -> list[Rendered | TemplateError]:
        """As `render`, for many conversations encoded together; a refused one has its error in its place."""
        layouts = [self._try_lay_out(c) for c in conversations]
        safe = self._encoder.encode([one.text for one in layouts if isinstance(one, _Layout) and not one.unsafe])
        out: list[Rendered | TemplateError] = []
        position = 0
        for layout in layouts:
            if isinstance(layout, TemplateError):
                out.append(layout)
                continue
            if layout.unsafe:
                ids, starts, ends = self._encode_unsafe(layout)
            else:
                part = slice(safe.offsets[position], safe.offsets[position + 1])
                ids, starts, ends = safe.ids[part], safe.starts[part], safe.ends[part]
                position += 1
            out.append(Rendered(ids, _weights(layout, starts, ends)))
        return out

    def prompt_ids(self, messages: Messages, tools: Sequence[Mapping[str, Any]] = ()) -> np.ndarray:
        """Generation prompt of OpenAI-style messages, int32 [T]. Raises TemplateError when the template refuses."""
        messages = [_without_marks(m) for m in messages]
        found = self._template.render(messages, tools, prompt=True)
        if not self._holds_control_text(messages, tools):
            return self._encoder.encode([found.text]).ids
        located = self._template.render_contents(messages, tools, found.text, prompt=True)
        if located is None:
            raise TemplateError("a message holds a control token's text, and the template hides where")
        return self._encode_unsafe(_Layout(found.text, [], located.contents, True))[0]

    def decode(self, ids: Sequence[int] | np.ndarray, skip_control: bool = True) -> str:
        """Text of token ids; control tokens are left out unless `skip_control` is False."""
        return self._encoder.decode(ids, skip_control)

    # -- layout --------------------------------------------------------------------------------------------------

    def _try_lay_out(self, conversation: Conversation) -> _Layout | TemplateError:
        try:
            return self._lay_out(conversation)
        except TemplateError as error:
            return error

    def _lay_out(self, conversation: Conversation) -> _Layout:
        messages = conversation.messages()
        found = self._template.render(messages, conversation.tools)
        turns = [i for i, m in enumerate(messages) if m["role"] == "assistant"]
        unsafe = self._holds_control_text(messages, conversation.tools)
        contents: dict[int, Span] = {}
        marked = len(found.generations) == len(turns) > 0
        if unsafe or not marked:
            located = self._template.render_contents(messages, conversation.tools, found.text)
            if located is None:
                raise TemplateError("the template's render does not show where the assistant's text lies")
            contents = located.contents
        trained = []
        for number, i in enumerate(turns):
            turn = conversation.turns[i]
            span = found.generations[number] if marked else contents.get(i)
            if span is not None and turn.train and turn.weight > 0:
                trained.append((self._with_stop(found.text, span), turn.weight))
        return _Layout(found.text, trained, contents, unsafe)

    def _with_stop(self, text: str, span: Span) -> Span:
        stop = self._stop_text
        if stop and not text.endswith(stop, span[0], span[1]) and text.startswith(stop, span[1]):
            return span[0], span[1] + len(stop)
        return span

    def _holds_control_text(self, messages: Messages, tools: Sequence[Any]) -> bool:
        pattern = self._encoder.control_pattern
        if any(pattern.search(m.get("content") or "") for m in messages):
            return True
        return bool(tools) and bool(pattern.search(str(tools)))

    def _encode_unsafe(self, layout: _Layout) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Encode between the template's own control tokens, so that the same text typed inside data stays text."""
        data = sorted(layout.contents.values())
        at_byte = byte_offsets(layout.text)
        parts, position = [], 0
        for match in [*self._encoder.control_pattern.finditer(layout.text), None]:
            if match and any(start < match.end() and match.start() < end for start, end in data):
                continue
            end = match.start() if match else len(layout.text)
            ids, starts, ends = self._encoder.encode_plain(layout.text[position:end])
            parts.append((ids, starts + at_byte[position], ends + at_byte[position]))
            if match:
                control = np.array([self._encoder.control_tokens[match.group()]], np.int32)
                parts.append((control, at_byte[[match.start()]], at_byte[[match.end()]]))
                position = match.end()
        ids, starts, ends = (np.concatenate(column) for column in zip(*parts, strict=True))
        return ids.astype(np.int32), starts, ends

    # -- what the template ends a turn with ------------------------------------------------------------------------

    def _find_stop_text(self) -> str | None:
        """The text from the end of an assistant's content through the control token that closes the turn."""
        probe = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
        try:
            plain = self._template.render(probe)
            found = self._template.render_contents(probe, (), plain.text)
        except TemplateError as error:
            raise UserError(f"model.base: its chat template cannot render one question and answer: {error}") from error
        if found is None or 1 not in found.contents:
            return None
        tail = plain.text[found.contents[1][1] :]
        match = self._encoder.control_pattern.search(tail)
        return tail[: match.end()] if match else None

    def _find_stop_ids(self) -> tuple[int, ...]:
        stops = []
        if self._stop_text:
            match = self._encoder.control_pattern.search(self._stop_text)
            assert match is not None
            stops.append(self._encoder.control_tokens[match.group()])
        end = self.spec.named_tokens.get("eos_token")
        if end in self._encoder.control_tokens:
            stops.append(self._encoder.control_tokens[end])
        return tuple(dict.fromkeys([*stops, *self.spec.extra_stop_ids]))


def _weights(layout: _Layout, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Loss weight of each token from its byte offsets: a token belongs to a span that holds it whole."""
    weights = np.zeros(len(starts), np.float32)
    ascii_text = layout.text.isascii()
    for (first, last), weight in layout.trained:
        if not ascii_text:
            first, last = len(layout.text[:first].encode()), len(layout.text[:last].encode())
        left = np.searchsorted(starts, first)
        right = np.searchsorted(ends, last, side="right")
        weights[left:right] = weight
    return weights


def _without_marks(message: Mapping[str, Any]) -> Mapping[str, Any]:
    content = message.get("content")
    if isinstance(content, str) and MARKS.search(content):
        return {**message, "content": MARKS.sub("\ufffd", content)}
    return message
