"""Text to show with its invisible characters as escapes.

Characters that turn the direction of text, join or hide letters, or control a terminal are trained
like all others, so a reader of the rows must see them.
"""

from __future__ import annotations

import unicodedata

_SHOWN_AS_IS = "\n\t\u3000"  # the last is the space of Chinese and Japanese, as wide as a letter
_BLANK = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"  # letters and marks without a form
_JOINER, _EMOJI_VARIANT = "\u200d", "\ufe0f"
# Before a joiner or a variant of an emoji there is a symbol, a digit or punctuation.
_EMOJI_CATEGORIES = {"So", "Sk", "Sm", "Nd", "Po", "Pd"}


def visible(text: str) -> str:
    """The text with each invisible character as its code point, such as ⟨U+202E⟩.

    The joiner inside an emoji stays, as does the ordinary space.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        f"⟨U+{ord(char):04X}⟩" if _is_invisible(char, text[i - 1 : i]) else char
        for i, char in enumerate(text)
    )


def _is_invisible(char: str, before: str) -> bool:
    is_variant = "\ufe00" <= char <= _EMOJI_VARIANT or "\U000e0100" <= char <= "\U000e01ef"
    if char == _JOINER or is_variant:
        after_variant = char == _JOINER and before == _EMOJI_VARIANT
        in_emoji = before and unicodedata.category(before) in _EMOJI_CATEGORIES
        return not (in_emoji or after_variant)
    return char in _BLANK or not (char.isprintable() or char in _SHOWN_AS_IS)
