"""Text to token ids in batches, with each token's place in the text, without a Python object a token."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import tokenizers

from pipelines.chat.tokenizer import TokenizerSpec

# L: number of texts, T: number of tokens of all texts together


@dataclass(frozen=True)
class Encoded:
    """`ids` int32 [T]; text i has the tokens `offsets[i]:offsets[i + 1]`; `starts`/`ends` are its byte offsets [T]."""

    ids: np.ndarray
    offsets: np.ndarray
    starts: np.ndarray
    ends: np.ndarray


class Encoder:
    """A tokenizer without post-processing: special tokens come from the chat template alone."""

    def __init__(self, spec: TokenizerSpec) -> None:
        data = json.loads(spec.tokenizer_json)
        data["post_processor"] = data["padding"] = data["truncation"] = None
        self._tokenizer = tokenizers.Tokenizer.from_str(json.dumps(data))
        # The plain one knows no control token: whatever is typed inside data stays text.
        plain = {**data, "added_tokens": [t for t in data["added_tokens"] if not t["special"]]}
        self._plain = tokenizers.Tokenizer.from_str(json.dumps(plain))
        self.control_tokens = {t["content"]: t["id"] for t in data["added_tokens"] if t["special"]}
        longest_first = sorted(self.control_tokens, key=len, reverse=True)
        self.control_pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._bytes_of_token = token_bytes(self._tokenizer, data)

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Encode whole texts; control tokens are recognized."""
        encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
        counts = [len(e.ids) for e in encodings]
        offsets = np.concatenate(([0], np.cumsum(counts, dtype=np.int64)))
        ids = np.concatenate([np.asarray(e.ids, np.int32) for e in encodings] or [np.empty(0, np.int32)])
        places = [self._places(text, np.asarray(e.ids, np.int32), e) for text, e in zip(texts, encodings, strict=True)]
        starts = np.concatenate([p[0] for p in places] or [np.empty(0, np.int64)])
        ends = np.concatenate([p[1] for p in places] or [np.empty(0, np.int64)])
        return Encoded(ids, offsets, starts, ends)

    def encode_plain(self, text: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ids and byte offsets of a text in which nothing is a control token."""
        encoding = self._plain.encode(text, add_special_tokens=False)
        ids = np.asarray(encoding.ids, np.int32)
        return ids, *self._places(text, ids, encoding)

    def decode(self, ids: Sequence[int] | np.ndarray, skip_control: bool = True) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=skip_control)

    def _places(self, text: str, ids: np.ndarray, encoding: tokenizers.Encoding) -> tuple[np.ndarray, np.ndarray]:
        """Byte offsets from the tokens' own lengths where these add up to the text, else from the tokenizer's."""
        if self._bytes_of_token is not None:
            ends = np.cumsum(self._bytes_of_token[ids], dtype=np.int64)
            if (ends[-1] if len(ends) else 0) == len(text.encode()):
                return ends - self._bytes_of_token[ids], ends
        characters = np.asarray(encoding.offsets, np.int64).reshape(-1, 2)
        at_byte = byte_offsets(text)
        return at_byte[characters[:, 0]], at_byte[characters[:, 1]]


def byte_offsets(text: str) -> np.ndarray:
    """Byte offset of every character of a text and of its end, int64 [len(text) + 1]."""
    if text.isascii():
        return np.arange(len(text) + 1)
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    widths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    return np.concatenate(([0], np.cumsum(widths)))


def token_bytes(tokenizer: tokenizers.Tokenizer, data: dict) -> np.ndarray | None:
    """Length in bytes of each token id, int32 [V], for a byte-level tokenizer; None for other kinds."""
    kinds = {_type(data.get(part)) for part in ("pre_tokenizer", "decoder")}
    if "ByteLevel" not in kinds and '"ByteLevel"' not in json.dumps(data.get("pre_tokenizer")):
        return None
    lengths = np.zeros(tokenizer.get_vocab_size(with_added_tokens=True) + len(data["added_tokens"]), np.int32)
    for token, index in tokenizer.get_vocab(with_added_tokens=False).items():
        lengths[index] = len(token)  # byte-level vocabularies spell each byte as one character
    for added in data["added_tokens"]:
        lengths[added["id"]] = len(added["content"].encode())
    return lengths


def _type(part: object) -> str | None:
    return part.get("type") if isinstance(part, dict) else None
