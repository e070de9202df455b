"""Each token's place in its text from the tokens' own lengths, as arrays, where these are sure to add up to the text.

The tokenizers library knows places only as a Python list of pairs a text, and fastokens not at all.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# L: texts, T: tokens of all of them, V: token ids
_UNKNOWN = 1 << 24  # no text is as long: one with such a token never adds up


@dataclass(frozen=True)
class TokenLengths:
    """`of_token` int64 [V]: bytes of each token. `stretch_opens`: a space is set before each stretch between added tokens
    ("every"), before the text ("first") or nowhere (""). `normalized`: only NFC text is encoded as it is.
    """

    of_token: np.ndarray
    is_added: np.ndarray
    stretch_opens: str
    normalized: bool

    def places(
        self, ids: np.ndarray, offsets: np.ndarray, bases: np.ndarray, texts: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Starts and ends [T] in bytes of all texts joined, and the numbers of the texts for which they are not known."""
        widths = self.of_token[ids]
        sizes = np.diff(bases)
        sure = np.ones(len(texts), bool)
        opened = np.empty(0, np.int64)
        if self.stretch_opens:
            opened, sure = self._opened(ids, offsets, _per_text(widths, offsets) - sizes)
            widths[opened] -= 1
        ends = np.cumsum(widths)
        total = np.concatenate(([0], ends))[offsets]
        ends += np.repeat(bases[:-1] - total[:-1], np.diff(offsets))
        starts = ends - widths
        ends[opened] = np.maximum(
            ends[opened], starts[opened] + 1
        )  # a space alone stands for what it was set before
        sure &= np.diff(total) == sizes
        if self.normalized:
            sure &= np.array(
                [t.isascii() or unicodedata.is_normalized("NFC", t) for t in texts], bool
            )
        return starts, ends, np.flatnonzero(~sure)

    def _opened(
        self, ids: np.ndarray, offsets: np.ndarray, extra: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The tokens before which a space was set, the first of each stretch, in texts that have so many bytes `extra`;
        and which texts can be told: where a space is set before every stretch, no other number is.
        """
        first = np.zeros(len(ids) + 1, bool)
        if self.stretch_opens == "every":
            first[1:] = self.is_added[ids]
        first[offsets[:-1]] = True
        first = first[:-1] & ~self.is_added[ids]
        fits = _per_text(first, offsets) == extra
        opened = np.flatnonzero(first & np.repeat(fits, np.diff(offsets)))
        return opened, fits | (self.stretch_opens == "first")


def token_lengths_of(vocabulary: dict[str, int], data: dict[str, Any]) -> TokenLengths | None:
    """For a byte-level tokenizer or one of sentencepiece's kind with byte fallback; None for others."""
    byte_level = '"ByteLevel"' in json.dumps(data["pre_tokenizer"])
    normalizers = _flat(data["normalizer"], "normalizers")
    kinds = {
        _kind(step)
        for step in [
            *normalizers,
            *([] if byte_level else _flat(data["pre_tokenizer"], "pretokenizers")),
        ]
    }
    allowed = {"nfc"} if byte_level else {"every", "first", "never", "space", "split"}
    if not kinds <= allowed or not (byte_level or data["model"].get("byte_fallback")):
        return None
    count = max(vocabulary.values(), default=0) + 1
    of_token, is_added = np.zeros(count, np.int64), np.zeros(count, bool)
    unknown = data["model"].get("unk_token")
    for token, index in vocabulary.items():
        # Byte-level vocabularies spell each byte as one character, the others a space as one of three bytes.
        of_token[index] = len(token) if byte_level else _bytes_of_piece(token)
        if token == unknown:
            of_token[index] = _UNKNOWN
    for added in data["added_tokens"]:
        is_added[added["id"]] = True
        of_token[added["id"]] = len(added["content"].encode())
    opens = next((kind for kind in ("every", "first") if kind in kinds), "")
    return TokenLengths(of_token, is_added, opens, "nfc" in kinds)


def _bytes_of_piece(token: str) -> int:
    return 1 if re.fullmatch("<0x[0-9A-F]{2}>", token) else len(token.replace("▁", " ").encode())


def _flat(step: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if step is None:
        return []
    return (
        [each for part in step[key] for each in _flat(part, key)]
        if step["type"] == "Sequence"
        else [step]
    )


def _kind(step: dict[str, Any]) -> str:
    """What a step does to a text's length."""
    if step["type"] == "Prepend" and step["prepend"] == "▁":
        return "every"
    if step["type"] == "Metaspace" and step["replacement"] == "▁":
        return "every" if step["prepend_scheme"] == "always" else str(step["prepend_scheme"])
    if step["type"] == "Replace" and step["pattern"] == {"String": " "} and step["content"] == "▁":
        return "space"
    if step["type"] == "Split" and step["behavior"] != "Removed":
        return "split"
    return "nfc" if step["type"] == "NFC" else step["type"]


def _per_text(values: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    return np.diff(np.concatenate(([0], np.cumsum(values, dtype=np.int64)))[offsets])
