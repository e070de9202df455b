"""ChatRenderer: what training sees and what serving sends come from the same template and the same tokenizer."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from pipelines.chat.adapt import adapt, probe_abilities
from pipelines.chat.encoder import Encoded, Encoder, byte_offsets, fast_encodes_alike
from pipelines.chat.formats import template_for
from pipelines.chat.layout import Layout, Layouter
from pipelines.chat.template import MARKS, ChatTemplate, Messages, TemplateError
from pipelines.chat.tokenizer import TokenizerSpec, load_spec
from pipelines.chat.trace import Tracer
from pipelines.contracts import Conversation, Turn, UserError

# L: conversations of a batch, T: their tokens


@dataclass(frozen=True)
class Rendered:
    """Token ids int32 [T] and loss weights float32 [T]; weight 0 masks a token."""

    input_ids: np.ndarray
    loss_weights: np.ndarray

    @property
    def num_loss_tokens(self) -> int:
        return int(np.count_nonzero(self.loss_weights))


@dataclass(frozen=True)
class RenderedBatch:
    """`ids` int32 [T] and `weights` float32 [T]; conversation i has `offsets[i]:offsets[i + 1]`, none if it has an error."""

    ids: np.ndarray
    weights: np.ndarray
    offsets: np.ndarray
    errors: Mapping[int, str]

    def __getitem__(self, i: int) -> Rendered:
        part = slice(self.offsets[i], self.offsets[i + 1])
        return Rendered(self.ids[part], self.weights[part])


class _Placed(NamedTuple):
    """A text of `num_bytes` with its weighted spans in bytes; `layout` only when it must be cut around data."""

    text: str
    num_bytes: int
    spans: Sequence[tuple[int, int, float]]
    layout: Layout | None = None


class ChatRenderer:
    """Renders with the base's own chat template and tokenizer; cheap to pickle, rebuilt where it arrives.

    Trained tokens are those that lie wholly inside an assistant turn's text or its stop token. A token that the
    tokenizer merges across the start of an answer also holds prompt text and stays masked.
    """

    def __init__(self, spec: TokenizerSpec, fast: bool = False) -> None:
        self.spec = spec
        self.fast = fast
        self._encoder = Encoder(spec, fast)
        source = template_for(spec)
        try:
            template = ChatTemplate(source, spec.named_tokens)
            self._layouter = Layouter(template, Tracer(source, spec.named_tokens))
            self._find_stop(template)
        except TemplateError as error:
            raise UserError(f"model.base: its chat template cannot be used: {error}") from error
        self._template = template
        self._can = probe_abilities(template)
        self._plain_roles = {"user", "assistant", *(["system"] if self._can.system else [])}

    @classmethod
    def load(cls, base: str, revision: str | None = None) -> ChatRenderer:
        """Read a base's tokenizer and template from a folder or the Hub. Raises UserError when it cannot."""
        return cls(load_spec(base, revision))

    def sped_up(self, texts: Sequence[str] = ()) -> tuple[ChatRenderer, str | None]:
        """This renderer on fastokens if that encodes probes and `texts` alike, else itself and the reason."""
        reason = fast_encodes_alike(self.spec, texts)
        return (self, reason) if reason else (ChatRenderer(self.spec, fast=True), None)

    def __reduce__(self) -> tuple[Any, ...]:
        return ChatRenderer, (self.spec, self.fast)

    @property
    def tokenizer_digest(self) -> str:
        return self.spec.tokenizer_digest

    @property
    def template_digest(self) -> str:
        return self.spec.template_digest

    def render(self, conversation: Conversation) -> Rendered:
        """Ids and loss weights of one conversation. Raises TemplateError when the template refuses it."""
        batch = self.render_batch([conversation])
        if batch.errors:
            raise TemplateError(batch.errors[0])
        return batch[0]

    def render_batch(self, conversations: Sequence[Conversation]) -> RenderedBatch:
        """As `render`, for many conversations encoded together; a refused one has its error instead of tokens."""
        placed: list[_Placed | None] = []
        errors: dict[int, str] = {}
        for i, conversation in enumerate(conversations):
            try:
                placed.append(self._place(conversation))
            except TemplateError as error:
                placed.append(None)
                errors[i] = str(error)
        if not errors and all(one.layout is None for one in placed if one):
            encoded = self._encoder.encode(
                [one.text for one in placed if one], [one.num_bytes for one in placed if one]
            )
            weights = _weights(encoded, [one.spans for one in placed if one])
            return RenderedBatch(encoded.ids, weights, encoded.offsets, errors)
        return self._render_mixed(placed, errors)

    def prompt_ids(self, messages: Messages, tools: Sequence[Mapping[str, Any]] = ()) -> np.ndarray:
        """Generation prompt of OpenAI-style messages, int32 [T]. Raises TemplateError when the template refuses."""
        fitted, tools, _ = adapt([_without_marks(m) for m in messages], tools, self._can)
        if self._holds_control_text(fitted, tools):
            return self._encode_around(self._layouter.lay_out(fitted, tools, prompt=True)).ids
        return self._encoder.encode([self._template.render(fitted, tools, prompt=True).text]).ids

    def text(self, conversation: Conversation) -> str:
        """The whole rendered text of a conversation. Raises TemplateError when the template refuses it."""
        fitted, tools, _ = adapt(conversation.messages(), conversation.tools, self._can)
        return self._template.render(fitted, tools).text

    def decode(self, ids: Sequence[int] | np.ndarray, skip_control: bool = True) -> str:
        """Text of token ids; control tokens are left out unless `skip_control` is False."""
        return self._encoder.decode(ids, skip_control)

    def decode_each(self, ids: Sequence[int] | np.ndarray) -> list[str]:
        """The text of every token by itself, for display."""
        return [self._encoder.decode_one(token) for token in ids]

    def check_fast(self, conversation: Conversation) -> None:
        """Compare fastokens with the tokenizers library on one conversation. Raises UserError when they differ."""
        text = self.text(conversation)
        if not np.array_equal(self._encoder.encode([text]).ids, self._encoder.encode_reference(text)):
            raise UserError(f"fastokens encodes {text[:60]!r}... differently; set data.fast_tokenizer=false")

    # -- places --------------------------------------------------------------------------------------------------

    def _place(self, conversation: Conversation) -> _Placed:
        turns, tools = conversation.turns, conversation.tools
        if not tools:
            placed = self._place_planned(turns)
            if placed is not None:
                return placed
        messages, tools, places = adapt(conversation.messages(), tools, self._can)
        weights = _weights_of_turns(turns, places, len(messages))
        layout = self._layouter.lay_out(messages, tools)
        at = byte_offsets(layout.text)
        spans = [(int(at[a]), int(at[b]), weights[turn]) for turn, a, b in layout.trained if weights[turn]]
        return _Placed(layout.text, int(at[-1]), spans, layout if self._holds_control_text(messages, tools) else None)

    def _place_planned(self, turns: Sequence[Turn]) -> _Placed | None:
        """The way of nearly all rows, so it is kept short: plain text turns of a shape that has a plan."""
        roles, contents = [], []
        for turn in turns:
            if turn.tool_calls or turn.name or turn.role not in self._plain_roles:
                return None
            roles.append(turn.role)
            contents.append(turn.content)
        for content in contents:
            if self._encoder.holds_control_text(content):
                return None
        plan = self._layouter.plan(roles, contents)
        if plan is None:
            return None
        texts = plan.texts(contents)
        text = "".join(texts)
        sizes = map(len, texts) if text.isascii() else [len(t.encode()) for t in texts]
        at = [*itertools.accumulate(sizes, initial=0)]
        spans = []
        for answer in plan.answers:
            turn = turns[answer.turn]
            if turn.train and turn.weight:
                spans.append((at[answer.first] - answer.lead, at[answer.last] + answer.tail_bytes, turn.weight))
        return _Placed(text, at[-1], spans)

    def _holds_control_text(self, messages: Messages, tools: Sequence[Any]) -> bool:
        holds = self._encoder.holds_control_text
        if any(holds(m["content"]) for m in messages):
            return True
        return any(holds(str(m["tool_calls"])) for m in messages if "tool_calls" in m) or (
            bool(tools) and holds(str(tools))
        )

    def _encode_around(self, layout: Layout) -> Encoded:
        if layout.contents is None:
            raise TemplateError(
                "a message holds a control token's text, and the chat template hides where that came to lie"
            )
        return self._encoder.encode_between_controls(layout.text, layout.contents)

    def _render_mixed(self, placed: Sequence[_Placed | None], errors: dict[int, str]) -> RenderedBatch:
        """A batch in which some conversations have errors or hold control tokens' text: one by one."""
        ids, weights, counts = [np.empty(0, np.int32)], [np.empty(0, np.float32)], []
        for i, one in enumerate(placed):
            count = 0
            if one is not None:
                try:
                    encoded = self._encode_around(one.layout) if one.layout else self._encoder.encode([one.text])
                    ids.append(encoded.ids)
                    weights.append(_weights(encoded, [one.spans]))
                    count = len(encoded.ids)
                except TemplateError as error:
                    errors[i] = str(error)
            counts.append(count)
        offsets = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
        return RenderedBatch(np.concatenate(ids), np.concatenate(weights), offsets, errors)

    # -- what the template ends a turn with ------------------------------------------------------------------------

    def _find_stop(self, template: ChatTemplate) -> None:
        """Find the text from the end of an answer through the control token that closes the turn, and the stop ids."""
        probe = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "answer"}]
        text = template.render(probe).text
        content = template.find_contents(probe, (), text).get(1)
        match = self._encoder.control_pattern.search(text, content[1]) if content else None
        stops = []
        if content and match:
            self._layouter.stop = text[content[1] : match.end()]
            stops.append(self._encoder.control_tokens[match.group()])
        end = self.spec.named_tokens.get("eos_token")
        if end in self._encoder.control_tokens:
            stops.append(self._encoder.control_tokens[end])
        self.stop_ids = tuple(dict.fromkeys([*stops, *self.spec.extra_stop_ids]))


def _weights_of_turns(turns: Sequence[Turn], places: Sequence[int], count: int) -> list[float]:
    weights = [0.0] * count
    for turn, place in zip(turns, places, strict=True):
        if turn.role == "assistant" and turn.train:
            weights[place] = turn.weight
    return weights


def _weights(encoded: Encoded, spans: Sequence[Sequence[tuple[int, int, float]]]) -> np.ndarray:
    """Loss weight of each token from its byte offsets: a token belongs to a span that holds it whole."""
    flat = [
        (base + a, base + b, w) for base, some in zip(encoded.bases.tolist(), spans, strict=False) for a, b, w in some
    ]
    weights = np.zeros(len(encoded.ids), np.float32)
    if not flat:
        return weights
    table = np.array(flat, np.float64)
    first = np.searchsorted(encoded.starts, table[:, 0].astype(np.int64))
    last = np.searchsorted(encoded.ends, table[:, 1].astype(np.int64), side="right")
    counts = np.maximum(last - first, 0)
    at = np.repeat(first - np.concatenate(([0], np.cumsum(counts)[:-1])), counts) + np.arange(counts.sum())
    weights[at] = np.repeat(table[:, 2].astype(np.float32), counts)
    return weights


def _without_marks(message: Mapping[str, Any]) -> Mapping[str, Any]:
    content = message.get("content")
    if isinstance(content, str) and MARKS.search(content):
        return {**message, "content": MARKS.sub("\ufffd", content)}
    return message
