"""Characters that cannot be seen are shown by their code points; all others stay."""

from __future__ import annotations

import pytest

from pipelines.data.audit.visible_text import visible

BIDIRECTIONAL = [*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F, 0x061C]
OTHERS = [
    0x00, 0x08, 0x0D, 0x1B, 0x7F, 0x85, 0xA0, 0xAD, 0x034F, 0x180E, 0x200B, 0x200C, 0x2028, 0x2060,
    0x2800, 0x3164, 0xFE00, 0xFEFF, 0xFFF9, 0xE000, 0xE0041, 0xE0100, 0xD83D,
]  # fmt: skip


@pytest.mark.parametrize("code", [*BIDIRECTIONAL, *OTHERS])
def test_an_invisible_character_is_shown_by_its_code(code: int) -> None:
    assert visible(f"a{chr(code)}b") == f"a⟨U+{code:04X}⟩b"
    assert visible(chr(code)) == f"⟨U+{code:04X}⟩"


@pytest.mark.parametrize(
    "text",
    [
        "plain", "", "a\nb\tc", "naïve café", "e\u0301", "東京\u3000都", "नमस्ते",
        "👩\u200d👩\u200d👧 ❤\ufe0f\u200d🔥 1\ufe0f\u20e3 ☀\ufe0f", "⟨x⟩ \ufffd",
    ],
)  # fmt: skip
def test_other_text_stays(text: str) -> None:
    assert visible(text) == text


def test_a_joiner_outside_an_emoji_is_shown() -> None:
    assert visible("a\u200db") == "a⟨U+200D⟩b"
