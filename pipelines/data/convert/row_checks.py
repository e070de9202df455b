"""Checks of a row's values and of the finished conversation, which raise RowError."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from pipelines.chat import MARKS
from pipelines.core.conversation import Conversation, Turn
from pipelines.data.convert.row_error import RowError
from pipelines.data.convert.unused_keys import MEDIA, meaning

MAX_TURNS = 1024  # masking renders once per turn, so the cost of a row is quadratic in this
_MEDIA = r"(?:<(?:image|video|audio)(?:_\d+)?>|<ImageHere>|\[IMG\])"
# Trainers of vision models put placeholders at the start or the end of a text, or on a line of
# their own. Elsewhere `<video>` may be HTML, and `<image>` with its closing tag SVG or RSS.
_PLACEHOLDER = re.compile(
    rf"\A\s*{_MEDIA}(?=\S|\s*\n|\s*\Z)|^[ \t]*{_MEDIA}[ \t]*$|[.?!:]\s*{_MEDIA}\s*\Z"
    r"|<\|(?:image_pad|video_pad|audio_pad|vision_start|image|audio|image_\d+)\|>"
    r"|<(?:start_of_image|image_soft_token|IMG_CONTEXT|im_start><image|Img><ImageHere)>"
    r"|<(img|audio|video)>[^<>\n]*\.\w{2,5}</\1>"
    r"|(?<!`)<image>(?!`|[\s\S]*</image>|\s*(?:tag|element)s?\b)",
    re.MULTILINE,
)
_MAX_SHOWN_CHARS, _MAX_SHOWN_BITS = 60, 200


def require_text(value: Any, key: str) -> str:
    """The value if it is a text."""
    if value is None:
        raise RowError(f"{key}: missing")
    if not isinstance(value, str):
        raise RowError(f"{key}: expected text, this is {type(value).__name__} ({brief(value)})")
    return value


def enters_loss(turn: Turn) -> bool:
    """True if a turn is an answer with label positions, or plain text."""
    if turn.role == "text":
        return True
    return turn.role == "assistant" and turn.train and turn.weight > 0 and not is_empty(turn)


def is_empty(turn: Turn) -> bool:
    """True if an assistant turn has neither text nor tool calls."""
    return turn.role == "assistant" and not turn.tool_calls and not turn.content.strip()


def check_conversation(conversation: Conversation) -> None:
    """Check the number of turns, their roles and their texts. Raises RowError."""
    if len(conversation.turns) > MAX_TURNS:
        raise RowError(f"{len(conversation.turns)} turns, the limit is {MAX_TURNS}")
    has_answer, num_systems = False, 0
    unused = conversation.unused_keys
    is_media_row = bool(unused) and any(meaning(key) == MEDIA for key in unused)
    for turn in conversation.turns:
        has_answer |= enters_loss(turn)
        num_systems += turn.role == "system"
        check_text(turn.content, turn.role)
        if turn.role == "user" and not is_media_row:
            _check_placeholder(turn.content)
        if turn.reasoning:
            check_text(turn.reasoning, "a thought")
        if turn.name:
            check_text(turn.name, "name")
    if not has_answer:
        raise RowError("no assistant turn to train on")
    if num_systems > 1:
        raise RowError("more than one system turn")


def _check_placeholder(text: str) -> None:
    """Refuse a text with the placeholder of an image, a video or a sound."""
    # Every placeholder has one of these; a search for each is faster than the pattern.
    if not (
        ("<" in text and ("image" in text or "video" in text or "audio" in text or "img>" in text))
        or "IMG" in text
        or "ImageHere" in text
        or "<|vision_start|>" in text
    ):
        return
    match = _PLACEHOLDER.search(text)
    if match:
        raise RowError(
            f"the text has {match.group().strip()} in the place of media that a text base cannot "
            "see: leave the row out, or remove the placeholder"
        )


def check_text(text: str, where: str) -> None:
    """Refuse characters that a template or a tokenizer cannot take."""
    if "\0" in text:
        raise RowError(f"the text has a NUL character in {where}")
    if text.isascii():
        return
    # The renderer marks spans with these noncharacters.
    if mark := MARKS.search(text):
        code = ord(mark.group())
        raise RowError(f"the text has the Unicode noncharacter U+{code:04X} in {where}")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        code = ord(error.object[error.start])
        # Readers decode a stray byte as a code point of this range ("surrogateescape").
        fault = (
            f"the byte {code - 0xDC00:#04x} (is the source's `encoding` another?)"
            if 0xDC80 <= code <= 0xDCFF
            else f"half a surrogate pair, U+{code:04X}"
        )
        raise RowError(f"the text is not UTF-8: {fault} in {where}") from None


def check_json(value: Any, where: str) -> None:
    """Refuse values without a JSON form (a table's dates, bytes, NaN) and unencodable text."""
    if isinstance(value, str):
        check_text(value, where)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            check_json(str(key), where)
            check_json(item, where)
    elif isinstance(value, list | tuple):
        for item in value:
            check_json(item, where)
    elif isinstance(value, float) and not math.isfinite(value):
        raise RowError(f"{where}: {value} is not JSON")
    elif value is not None and not isinstance(value, bool | int | float):
        raise RowError(f"{where}: a value of type {type(value).__name__} is not JSON")


def brief(value: Any) -> str:
    """A value in a message, cut at 60 characters."""
    if isinstance(value, int) and value.bit_length() >= _MAX_SHOWN_BITS:
        return "a number of many digits"
    text = repr(value)
    return text if len(text) <= _MAX_SHOWN_CHARS else f"{text[:_MAX_SHOWN_CHARS]}..."
