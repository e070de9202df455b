"""Token offsets (an offset mapping) from the tokens' own byte lengths, as arrays.

The tokenizers library gives offsets only as a Python list of pairs for each text, and fastokens
gives none. A text's tokens spell the text, so sums of their lengths are their offsets, wherever the
lengths add up to the text's bytes.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

# L: texts, T: tokens of all texts, V: token ids
_UNKNOWN_LENGTH = 1 << 24  # longer than any text: with such a token, the lengths never add up


@dataclass(frozen=True)
class TokenLengths:
    """`of_token` int64 [V]: bytes of each token; `is_added` bool [V].

    `space_before`: where the tokenizer sets a space that the text does not have. "every": before
    every stretch of text between added tokens; "first": before the text; "": nowhere.
    `normalized`: the tokenizer normalizes to NFC, so only NFC text is encoded as it is.
    """

    of_token: np.ndarray
    is_added: np.ndarray
    space_before: str
    normalized: bool

    def token_offsets(
        self, ids: np.ndarray, offsets: np.ndarray, bases: np.ndarray, texts: Sequence[str]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Starts and ends, int64 [T], in bytes of all texts joined, and the indices of the texts
        for which they are not known.
        """
        lengths = self.of_token[ids]
        sizes = np.diff(bases)
        certain = np.ones(len(texts), bool)
        spaced = np.empty(0, np.int64)
        if self.space_before:
            spaced, certain = self._spaced(ids, offsets, _per_text(lengths, offsets) - sizes)
            lengths[spaced] -= 1
        ends = np.cumsum(lengths)
        total = np.concatenate(([0], ends))[offsets]
        ends += np.repeat(bases[:-1] - total[:-1], np.diff(offsets))
        starts = ends - lengths
        # A token that is only the added space takes the offsets of the character after the space.
        ends[spaced] = np.maximum(ends[spaced], starts[spaced] + 1)
        certain &= np.diff(total) == sizes
        if self.normalized:
            nfc = [t.isascii() or unicodedata.is_normalized("NFC", t) for t in texts]
            certain &= np.array(nfc, bool)
        return starts, ends, np.flatnonzero(~certain)

    def _spaced(
        self, ids: np.ndarray, offsets: np.ndarray, surplus: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """The tokens with an added space, and for which texts [L] that is certain.

        `surplus` [L]: bytes by which a text's tokens are longer than the text. The tokens that can
        have a space are the first of each stretch. They have one if the surplus is their number.
        Where a space is set before every stretch, another surplus leaves it open which have one.
        """
        first = np.zeros(len(ids) + 1, bool)
        if self.space_before == "every":
            first[1:] = self.is_added[ids]
        first[offsets[:-1]] = True
        first = first[:-1] & ~self.is_added[ids]
        fits = _per_text(first, offsets) == surplus
        spaced = np.flatnonzero(first & np.repeat(fits, np.diff(offsets)))
        return spaced, fits | (self.space_before == "first")


def build_token_lengths(vocabulary: dict[str, int], data: dict[str, Any]) -> TokenLengths | None:
    """Lengths for a byte-level tokenizer, or one of sentencepiece's kind with byte fallback.

    None for any other. `data` is the tokenizer as JSON.
    """
    byte_level = '"ByteLevel"' in json.dumps(data["pre_tokenizer"])
    steps = _flatten(data["normalizer"], "normalizers")
    if not byte_level:
        steps += _flatten(data["pre_tokenizer"], "pretokenizers")
    effects = {_effect_on_length(step) for step in steps}
    allowed = {"nfc"} if byte_level else {"every", "first", "never", "space", "split"}
    if not effects <= allowed or not (byte_level or data["model"].get("byte_fallback")):
        return None
    count = max(vocabulary.values(), default=0) + 1
    of_token, is_added = np.zeros(count, np.int64), np.zeros(count, bool)
    unknown = data["model"].get("unk_token")
    for token, index in vocabulary.items():
        # Byte-level vocabularies write each byte as one character; the others write a space as one
        # character of three bytes.
        of_token[index] = len(token) if byte_level else _num_bytes(token)
        if token == unknown:
            of_token[index] = _UNKNOWN_LENGTH
    for added in data["added_tokens"]:
        is_added[added["id"]] = True
        of_token[added["id"]] = len(added["content"].encode())
    space_before = next((effect for effect in ("every", "first") if effect in effects), "")
    return TokenLengths(of_token, is_added, space_before, "nfc" in effects)


def _num_bytes(token: str) -> int:
    return 1 if re.fullmatch("<0x[0-9A-F]{2}>", token) else len(token.replace("▁", " ").encode())


def _flatten(step: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if step is None:
        return []
    if step["type"] == "Sequence":
        return [inner for part in step[key] for inner in _flatten(part, key)]
    return [step]


def _effect_on_length(step: dict[str, Any]) -> str:
    """The effect of a tokenizer step on a text's length; the step's type if it is unknown."""
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
