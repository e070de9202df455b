"""ChatRenderer: what training sees and what serving sends come from the same template and the same tokenizer."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.chat.assistant_spans import AssistantSpanFinder, RenderedSpans
from pipelines.chat.compiled.symbolic import Tracer
from pipelines.chat.default_templates import template_for
from pipelines.chat.encoder import Encoded, Encoder, byte_offsets, fast_encodes_alike
from pipelines.chat.fallbacks import apply_fallbacks, probe_capabilities
from pipelines.chat.loss_mask import LossMasks, Places, loss_masks
from pipelines.chat.prompt_prefix import PromptPrefixCheck
from pipelines.chat.rendered import Placed, Rendered, RenderedBatch
from pipelines.chat.special_tokens import SpecialTokens, plain_text
from pipelines.chat.template import MARKS, ROW_FAULTS, ChatTemplate, Messages, TemplateError
from pipelines.chat.tokenizer import TokenizerSpec, added_tokens, load_spec
from pipelines.chat.typed_special_tokens import TypedText
from pipelines.core.conversation import Conversation, Turn
from pipelines.core.errors import UserError


class ChatRenderer:
    """Renders with the base's own chat template and tokenizer; cheap to pickle, rebuilt where it arrives.

    Trained tokens are those that lie wholly inside an assistant turn's text or its stop token. A token that the
    tokenizer merges across the start of an answer also holds prompt text and stays masked.
    """

    def __init__(self, spec: TokenizerSpec, fast: bool = False) -> None:
        self.spec = spec
        self.fast = fast
        source = template_for(spec)
        try:
            template = ChatTemplate(source, spec.named_tokens)
            self._controls = SpecialTokens(
                added_tokens(spec), spec.named_tokens.values(), plain_text(template), source
            )
            self._encoder = Encoder(spec, fast, self._controls)
            self._layouter = AssistantSpanFinder(template, Tracer(source, spec.named_tokens))
            self._find_stop(template)
        except TemplateError as error:
            raise UserError(f"model.base: its chat template cannot be used: {error}") from error
        self._template = template
        self._typed = TypedText(template, self._controls)
        self._prompts = PromptPrefixCheck(self._encoder, self.prompt_ids)
        self._can = probe_capabilities(template)
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

    @property
    def shows_text_beside_calls(self) -> bool:
        """Whether what an assistant says in a turn with tool calls is rendered; Llama-3.1's template leaves it out."""
        return self._can.text_beside_calls

    def render(self, conversation: Conversation) -> Rendered:
        """Ids and loss weights of one conversation. Raises TemplateError when the template refuses it."""
        batch = self.render_batch([conversation])
        if batch.errors:
            raise TemplateError(batch.errors[0])
        return batch[0]

    def render_batch(self, conversations: Sequence[Conversation]) -> RenderedBatch:
        """As `render`, for many conversations encoded together; a refused one has its error instead of tokens."""
        placed: list[Placed | None] = []
        errors: dict[int, str] = {}
        for i, conversation in enumerate(conversations):
            try:
                placed.append(self._place(conversation))
            except (
                ROW_FAULTS
            ) as error:  # a TemplateError is one of these; whatever it is, it costs this row alone
                placed.append(None)
                errors[i] = (
                    str(error)
                    if isinstance(error, TemplateError)
                    else f"cannot be rendered: {error}"
                )
        if not errors and all(one.layout is None for one in placed if one):
            done = [one for one in placed if one]
            encoded = self._encoder.encode(
                [one.text for one in done], [one.num_bytes for one in done]
            )
            masks = loss_masks(encoded, [one.places for one in done], self._stops)
            return RenderedBatch(encoded.ids, masks, encoded.offsets, errors, placed)
        return self._render_mixed(placed, errors)

    def prompt_ids(self, messages: Messages, tools: Sequence[Mapping[str, Any]] = ()) -> np.ndarray:
        """Generation prompt of OpenAI-style messages, int32 [T]. Raises TemplateError when the template refuses."""
        fitted, tools, _ = apply_fallbacks([_without_marks(m) for m in messages], tools, self._can)
        try:
            if self._typed.held_in(fitted, tools):
                layout = self._layouter.lay_out(fitted, tools, prompt=True)
                return self._encode_around(self._typed.cut(layout, fitted, tools, prompt=True)).ids
            return self._encoder.encode(
                [self._template.render(fitted, tools, prompt=True).text]
            ).ids
        except UnicodeEncodeError as error:
            raise TemplateError(
                f"the messages hold text that is not Unicode ({error.reason})"
            ) from error

    def begin_with_prompts(
        self, conversations: Sequence[Conversation], batch: RenderedBatch, rows: Sequence[int]
    ) -> list[bool | None]:
        """Of each of `rows` whether it begins with the generation prompt of its last answer, that prompt's last token
        masked; None when there is nothing to answer.
        """
        return self._prompts.check(conversations, batch, rows)

    def text(self, conversation: Conversation) -> str:
        """The whole rendered text of a conversation. Raises TemplateError when the template refuses it."""
        fitted, tools, _ = apply_fallbacks(conversation.messages(), conversation.tools, self._can)
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
        if not np.array_equal(
            self._encoder.encode([text]).ids, self._encoder.encode_reference(text)
        ):
            raise UserError(
                f"fastokens encodes {text[:60]!r}... differently; set data.fast_tokenizer=false"
            )

    # -- places --------------------------------------------------------------------------------------------------

    def _place(self, conversation: Conversation) -> Placed:
        turns, tools = conversation.turns, conversation.tools
        if not tools:
            placed = self._place_planned(turns)
            if placed is not None:
                return placed
        if any(_holds_marks(turn) for turn in turns) or (tools and MARKS.search(_spelled(tools))):
            raise TemplateError("the text holds a Unicode noncharacter of U+FDD0 to U+FDD3")
        messages, tools, places = apply_fallbacks(conversation.messages(), tools, self._can)
        weights = _weights_of_turns(turns, places, len(messages))
        layout = self._layouter.lay_out(messages, tools)
        at = byte_offsets(layout.text)
        trained: list[float] = []
        for turn, a, b in sorted(layout.trained, key=lambda span: span[1]):
            if weights[turn]:
                trained += int(at[a]), int(at[b]), weights[turn]
        others = at[np.array(layout.others, np.int64).reshape(-1)].tolist()
        cut = (
            self._typed.cut(layout, messages, tools)
            if self._typed.held_in(messages, tools)
            else None
        )
        return Placed(layout.text, int(at[-1]), Places(trained, others), cut)

    def _place_planned(self, turns: Sequence[Turn]) -> Placed | None:
        """The way of nearly all rows, so it is kept short: plain text turns of a shape that has a plan."""
        roles, contents = [], []
        for turn in turns:
            if turn.tool_calls or turn.name or turn.role not in self._plain_roles:
                return None
            content = turn.content
            if self._controls.typed_in(content, turn.role == "assistant"):
                return None
            if not content.isascii() and MARKS.search(content):
                return None
            roles.append(turn.role)
            contents.append(content)
        plan = self._layouter.plan(roles, contents)
        if plan is None:
            return None
        texts = plan.texts(contents)
        text = "".join(texts)
        sizes = map(len, texts) if text.isascii() else [len(t.encode()) for t in texts]
        at = [*itertools.accumulate(sizes, initial=0)]
        trained: list[float] = []
        for answer in plan.answers:
            turn = turns[answer.turn]
            if turn.train and turn.weight:
                trained += (
                    at[answer.first] - answer.lead,
                    at[answer.last] + answer.tail_bytes,
                    turn.weight,
                )
        others: list[int] = []
        for i in plan.others:
            others += at[i], at[i + 1]
        prompt = plan.prompt
        if prompt is None:
            return Placed(text, at[-1], Places(trained, others))
        places = Places(trained, others, at[prompt.piece] + prompt.num_bytes)
        return Placed(text, at[-1], places, None, prompt.text)

    def _encode_around(self, layout: RenderedSpans) -> Encoded:
        return self._encoder.encode_between_controls(
            layout.text, layout.contents or (), layout.others
        )

    def _render_mixed(
        self, placed: Sequence[Placed | None], errors: dict[int, str]
    ) -> RenderedBatch:
        """A batch in which some conversations have errors or hold control tokens' text: one by one."""
        ids, masks, counts = [np.empty(0, np.int32)], [LossMasks.none(0)], []
        for i, one in enumerate(placed):
            count, found = 0, LossMasks.none(1)
            if one is not None:
                try:
                    encoded = (
                        self._encode_around(one.layout)
                        if one.layout
                        else self._encoder.encode([one.text])
                    )
                    found = loss_masks(encoded, [one.places], self._stops)
                    ids.append(encoded.ids)
                    count = len(encoded.ids)
                except TemplateError as error:
                    errors[i] = str(error)
            masks.append(found)
            counts.append(count)
        offsets = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
        return RenderedBatch(np.concatenate(ids), LossMasks.joined(masks), offsets, errors, placed)

    # -- what the template ends a turn with ------------------------------------------------------------------------

    def _find_stop(self, template: ChatTemplate) -> None:
        """Find the text from the end of an answer through the control token that closes the turn, and the stop ids."""
        probe = [
            {"role": "user", "content": "question"},
            {"role": "assistant", "content": "answer"},
        ]
        text = template.render(probe).text
        content = template.find_contents(probe, (), text).get(1)
        match = self._controls.pattern.search(text, content[1]) if content else None
        stops = []
        if content and match:
            self._layouter.stop = text[content[1] : match.end()]
            stops.append(self._controls.tokens[match.group()])
        end = self.spec.named_tokens.get("eos_token")
        if end in self._controls.tokens:
            stops.append(self._controls.tokens[end])
        self.stop_ids = tuple(dict.fromkeys([*stops, *self.spec.extra_stop_ids]))
        self._stops = np.array(self.stop_ids, np.int64)


def _weights_of_turns(turns: Sequence[Turn], places: Sequence[int], count: int) -> list[float]:
    weights = [0.0] * count
    for turn, place in zip(turns, places, strict=True):
        if turn.role == "assistant" and turn.train:
            weights[place] = turn.weight
    return weights


def _holds_marks(turn: Turn) -> bool:
    if not turn.content.isascii() and MARKS.search(turn.content):
        return True
    return (
        bool(turn.tool_calls or turn.name)
        and MARKS.search(_spelled([turn.tool_calls, turn.name])) is not None
    )


def _spelled(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _without_marks(message: Mapping[str, Any]) -> Mapping[str, Any]:
    content = message.get("content")
    if isinstance(content, str) and MARKS.search(content):
        return {**message, "content": MARKS.sub("\ufffd", content)}
    return message
