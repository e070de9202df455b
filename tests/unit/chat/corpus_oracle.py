"""Which tokens of a conversation must have a loss, found without the product's spans.

The rule: transformers' own render of the conversation must begin with its own render of the
messages before an answer as a generation prompt. Then everything from the end of that prompt to the
text that ends the turn is what the model writes in serving, and nothing else of the row has a loss.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from pipelines.chat import RenderedBatch
from pipelines.core.conversation import Conversation
from tests.unit.chat.corpus_reference import Messages, Reference, serving_faults

_THOUGHT_ENDS = ("</think>", "[/THINK]", "</seed:think>", "<channel|>", "<|close|>think")


class _Answer(NamedTuple):
    """An answer of a render: where serving's prompt before it ends, -1 if the render does not begin
    with that prompt; the characters of its text and calls; and where the text that ends it ends,
    -1 if none follows.
    """

    prompt_end: int
    first: int
    last: int
    end: int


class Check:
    """One conversation of a batch against the rule. `silent` names what is wrong and not told."""

    def __init__(
        self,
        reference: Reference,
        conversation: Conversation,
        batch: RenderedBatch,
        i: int,
        stops: Sequence[str],
        notes: Sequence[str],
    ) -> None:
        """`stops`, `notes`: the product's checks that this row fails, and that stop training or are
        told as a note.
        """
        self.reference, self.conversation = reference, conversation
        self.ids, self.weights = batch[i].input_ids, batch[i].loss_weights
        self.refused = batch.errors.get(i, "")
        self.stops, self.notes = tuple(stops), tuple(notes)
        self.silent = [] if self.refused else list(self._faults())

    def _has_thought(self, k: int) -> bool:
        turn = self.conversation.turns[k]
        return bool(turn.reasoning or _parts(turn.content)[0])

    @property
    def _asks_thoughts(self) -> bool:
        return True in self.reference.renderer.spec.arguments.values()

    @property
    def outcome(self) -> str:
        if self.refused:
            return "refused"
        return " ".join([*self.stops, *self.notes]) or "trained"

    def _faults(self) -> Iterator[str]:
        messages, tools, index = self.reference.as_rendered(self.conversation)
        text = self.reference.render(messages, tools)
        if text is None:
            yield "transformers refuses the conversation, the product trains it"
            return
        ids, offsets = self.reference.encode(text)
        if ids.tolist() != self.ids[: len(ids)].tolist():
            spelled = self.reference.tokenizer.decode(self.ids)
            yield f"not transformers' ids: {spelled!r}, not {text!r}"
            return
        yield from self._hidden(text)
        prompts = self.reference.prompts(self.conversation)
        yield from serving_faults(self.reference, self.conversation, prompts)
        allowed = np.zeros(len(ids), bool)
        last = 0
        for k, (turn, at) in enumerate(zip(self.conversation.turns, index, strict=True)):
            if turn.role != "assistant":
                continue
            answer = self._locate(text, messages, at, prompts[k], last)
            last = max(last, answer.last)
            inside = self._tokens_of(answer, text, offsets)
            weight = turn.weight if turn.train else 0.0
            allowed |= inside & (weight > 0)
            yield from self._answer_faults(text, offsets, answer, inside, weight, k)
        added = self.ids[len(ids) :]  # an end that the template leaves out
        ends = self.reference.tokenizer.convert_tokens_to_ids(list(self.reference.ends))
        if not set(added.tolist()) <= set(ends):
            yield f"tokens behind the render: {added.tolist()}"
        outside = ~allowed & (self.weights[: len(ids)] > 0)
        if outside.any() and not self.stops:
            yield f"trained outside of the answers: {self._spell(outside, text, offsets)}"

    def _answer_faults(
        self,
        text: str,
        offsets: np.ndarray,
        answer: _Answer,
        inside: np.ndarray,
        weight: float,
        k: int,
    ) -> Iterator[str]:
        weights = self.weights[: len(offsets)]
        written = (offsets[:, 0] < answer.last) & (offsets[:, 1] > answer.first)
        is_trained = bool((weights[written] > 0).any())
        if not weight:
            if is_trained:
                yield f"turn {k} is trained though it must not be"
            return
        if self.stops:
            return
        if answer.prompt_end < 0:
            if is_trained:
                yield f"turn {k} is trained behind another prompt than serving's, not counted"
            return
        content = _parts(self.conversation.turns[k].content)[1]
        behind = text.find(content, max(answer.last, answer.end))
        is_inside = content in text[answer.prompt_end : answer.last]
        if behind >= 0 and not is_inside and "text" not in self.notes:
            yield f"turn {k}: its text is behind its result: not trained and not counted"
        prompt, _ = self.reference.encode(text[: answer.prompt_end])
        if prompt.tolist() != self.ids[: len(prompt)].tolist():
            yield f"turn {k}: the row's ids do not begin with the prompt's, not counted"
        if answer.end < 0 and len(self.ids) == len(offsets):
            yield f"turn {k} has no end, not counted"
        written = text[answer.prompt_end : answer.first]
        closes_thought = any(mark in written for mark in _THOUGHT_ENDS)
        if closes_thought and not self._has_thought(k) and not self._asks_thoughts:
            yield f"turn {k} trains an empty thought that no argument asks for: {written!r}"
        missing = inside & (weights == 0)
        if missing.any():
            yield f"turn {k}: not trained: {self._spell(missing, text, offsets)}"
        if (inside & (weights > 0) & (weights != weight)).any():
            yield f"turn {k} does not have the weight {weight}"

    def _locate(
        self, text: str, messages: Messages, at: int, prompt: str | None, start: int
    ) -> _Answer:
        message = messages[at]
        prompt_end = len(prompt) if prompt is not None and text.startswith(prompt) else -1
        start = max(start, prompt_end)
        words = [_parts(str(message.get("content") or ""))[1]]
        for call in message.get("tool_calls", ()):
            words += [call["function"]["name"], *map(str, call["function"]["arguments"].values())]
        following = [str(other["content"]).strip() for other in messages[at + 1 : at + 2]]
        next_text = min(
            (
                text.find(word, start)
                for word in following
                if word and word in text[start:] and not any(word in own for own in words)
            ),
            default=len(text),
        )
        places = [(text.find(word, start), len(word)) for word in words if word]
        places = [(place, place + size) for place, size in places if 0 <= place < next_text]
        if not places:
            return _Answer(prompt_end, start, start, -1)
        first, last = min(places)[0], max(end for _, end in places)
        ends = [(text.find(end, last), end) for end in self.reference.ends if end in text[last:]]
        position, end = min(ends, default=(-1, ""))
        if position >= 0 and position < next_text:
            return _Answer(prompt_end, first, last, position + len(end))
        return _Answer(prompt_end, first, len(text) if not following else last, -1)

    def _tokens_of(self, answer: _Answer, text: str, offsets: np.ndarray) -> np.ndarray:
        """The tokens from the end of the prompt to the end of the turn."""
        if answer.prompt_end < 0:
            return np.zeros(len(offsets), bool)
        end = answer.end
        if end < 0:
            end = answer.last
        behind = np.array([text[end:last].isspace() for _, last in offsets.tolist()])
        return (
            (offsets[:, 0] >= answer.prompt_end)
            & (offsets[:, 0] < end)
            & ((offsets[:, 1] <= end) | behind)
        )

    def _hidden(self, text: str) -> Iterator[str]:
        """Parts of the row that the render does not show, and that no check counts."""
        if self.stops:
            return
        shown = [(tool["function"]["description"], "a tool") for tool in self.conversation.tools]
        for i, turn in enumerate(self.conversation.turns):
            thought, content = _parts(turn.content)
            if "text" not in self.notes or not turn.tool_calls:
                shown.append((content, f"the text of turn {i}"))
            if "thought" not in self.notes:
                shown.append((turn.reasoning.strip() or thought, "a thought"))
            for call in turn.tool_calls:
                shown += [(str(v), "a call") for v in call["function"]["arguments"].values()]
        for part, kind in shown:
            if part not in text and json.dumps(part, ensure_ascii=False)[1:-1] not in text:
                yield f"{kind} is not in the render and not counted: {part!r}"

    def _spell(self, mask: np.ndarray, text: str, offsets: np.ndarray) -> str:
        characters = sorted({i for a, b in offsets[mask].tolist() for i in range(a, b)})
        return repr("".join(text[i] for i in characters))


def _parts(content: str) -> tuple[str, str]:
    """The thought and the answer of a text; a request to think or not is none of it."""
    thought, tag, answer = content.replace("/no_think", "").rpartition("</think>")
    return thought.removeprefix("<think>").strip() if tag else "", answer.strip()
