"""Text to token ids in batches, with each token's place in the text, without a Python object a token."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import tokenizers

from pipelines.chat.tokenizer import TokenizerSpec

# L: number of texts, T: number of tokens of all texts together


@dataclass(frozen=True)
class Encoded:
    """`ids` int32 [T]; text i has the tokens `offsets[i]:offsets[i + 1]`. `starts` and `ends` [T] are byte offsets in all
    texts joined, where text i begins at `bases[i]`.
    """

    ids: np.ndarray
    offsets: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    bases: np.ndarray


class Encoder:
    """A tokenizer without post-processing: special tokens come from the chat template alone.

    `fast` encodes with fastokens; its ids must have been found equal (see `fast_encodes_alike`).
    """

    def __init__(self, spec: TokenizerSpec, fast: bool = False) -> None:
        data = json.loads(spec.tokenizer_json)
        data["post_processor"] = data["padding"] = data["truncation"] = None
        text = json.dumps(data)
        self._tokenizer = tokenizers.Tokenizer.from_str(text)
        self._fast = _fast_tokenizer(text) if fast else None
        # The plain one knows no control token: whatever is typed inside data stays text.
        plain = {**data, "added_tokens": [t for t in data["added_tokens"] if not t["special"]]}
        self._plain = tokenizers.Tokenizer.from_str(json.dumps(plain))
        controls = [t for t in data["added_tokens"] if t["special"]]
        self.control_tokens = {t["content"]: t["id"] for t in controls}
        self._eats_right = {t["content"] for t in controls if t["rstrip"]}
        self._eats_left = {t["content"] for t in controls if t["lstrip"]}
        longest_first = sorted(self.control_tokens, key=len, reverse=True)
        self.control_pattern = re.compile("|".join(map(re.escape, longest_first)) or "(?!)")
        self._control_starts = tuple({t[:2] for t in self.control_tokens})
        self._bytes_of_token = token_bytes(self._tokenizer, data)

    def holds_control_text(self, text: str) -> bool:
        """Whether a control token's text is somewhere in a text."""
        for start in self._control_starts:  # almost no text gets past this
            if start in text:
                return self.control_pattern.search(text) is not None
        return False

    def encode(self, texts: Sequence[str], sizes: Sequence[int] | None = None) -> Encoded:
        """Encode whole texts, of `sizes` bytes if these are known; control tokens are recognized. Raises UnicodeEncodeError."""
        sizes = sizes or [len(t) if t.isascii() else len(t.encode()) for t in texts]
        encodings: list[tokenizers.Encoding] | None = None
        if self._fast is not None:
            flat, bounds = self._fast.encode_batch_flat(list(texts))
            ids = np.frombuffer(flat, np.int32)
            offsets = np.frombuffer(bounds, np.int64)
        else:
            encodings = self._tokenizer.encode_batch(list(texts), add_special_tokens=False)
            offsets = np.concatenate(([0], np.cumsum([len(e.ids) for e in encodings], dtype=np.int64)))
            ids = np.concatenate([np.asarray(e.ids, np.int32) for e in encodings] or [np.empty(0, np.int32)])
        bases = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
        return self._placed(texts, encodings, ids, offsets, bases)

    def _placed(
        self, texts: Sequence[str], encodings: list[Any] | None, ids: np.ndarray, offsets: np.ndarray, bases: np.ndarray
    ) -> Encoded:
        """Byte offsets from the tokens' own lengths where these add up to the text, else from the tokenizer's."""
        if self._bytes_of_token is None:
            starts, ends, wrong = np.empty(len(ids), np.int64), np.empty(len(ids), np.int64), np.arange(len(texts))
        else:
            widths = self._bytes_of_token[ids]
            ends = np.cumsum(widths, dtype=np.int64)
            total = np.concatenate(([0], ends))[offsets]
            ends += np.repeat(bases[:-1] - total[:-1], np.diff(offsets))
            starts = ends - widths
            wrong = np.flatnonzero(np.diff(total) != np.diff(bases))
        for i in wrong.tolist():
            one = encodings[i] if encodings else self._tokenizer.encode(texts[i], add_special_tokens=False)
            part = slice(offsets[i], offsets[i + 1])
            at_byte = byte_offsets(texts[i]) + bases[i]
            places = np.asarray(one.offsets, np.int64).reshape(-1, 2)
            starts[part], ends[part] = at_byte[places[:, 0]], at_byte[places[:, 1]]
        return Encoded(ids, offsets, starts, ends, bases)

    def encode_between_controls(self, text: str, data: Sequence[tuple[int, int]]) -> Encoded:
        """Encode a text of which the spans `data` (characters) came from messages: no control token arises from these.

        The text is cut at the other control tokens, as the tokenizer itself cuts it.
        """
        at_byte = byte_offsets(text)
        ids, starts, ends = [np.empty(0, np.int32)], [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        position, eat = 0, False
        for match in [*self.control_pattern.finditer(text), None]:
            if match and any(first < match.end() and match.start() < last for first, last in data):
                continue
            stretch = text[position : match.start() if match else None]
            lead = len(stretch) - len(stretch.lstrip()) if eat else 0
            stretch = stretch[lead:]
            if match and match.group() in self._eats_left:
                stretch = stretch.rstrip()
            if stretch:
                one = self._plain.encode(stretch, add_special_tokens=False)
                places = self._places_alone(stretch, one) + at_byte[position + lead]
                ids.append(np.asarray(one.ids, np.int32))
                starts.append(places[0])
                ends.append(places[1])
            if match:
                ids.append(np.array([self.control_tokens[match.group()]], np.int32))
                starts.append(at_byte[[match.start()]])
                ends.append(at_byte[[match.end()]])
                position, eat = match.end(), match.group() in self._eats_right
        flat = np.concatenate(ids)
        offsets, bases = np.array([0, len(flat)]), np.array([0, at_byte[-1]])
        return Encoded(flat, offsets, np.concatenate(starts), np.concatenate(ends), bases)

    def _places_alone(self, text: str, one: tokenizers.Encoding) -> np.ndarray:
        ids, size = np.asarray(one.ids, np.int32), len(text.encode())
        placed = self._placed([text], [one], ids, np.array([0, len(ids)]), np.array([0, size]))
        return np.stack([placed.starts, placed.ends])

    def decode(self, ids: Sequence[int] | np.ndarray, skip_control: bool = True) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=skip_control)

    def decode_one(self, token: int) -> str:
        """One token's text, for display; bytes of a split character show as U+FFFD."""
        return self._tokenizer.decode([int(token)], skip_special_tokens=False)

    def encode_reference(self, text: str) -> np.ndarray:
        """Ids by the tokenizers library itself, whatever `fast` says."""
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)


def byte_offsets(text: str) -> np.ndarray:
    """Byte offset of every character of a text and of its end, int64 [len(text) + 1]. Raises UnicodeEncodeError."""
    if text.isascii():
        return np.arange(len(text) + 1)
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    return np.concatenate(([0], np.cumsum(widths)))


def token_bytes(tokenizer: tokenizers.Tokenizer, data: dict[str, Any]) -> np.ndarray | None:
    """Length in bytes of each token id, int32 [V], for a byte-level tokenizer; None for other kinds."""
    if '"ByteLevel"' not in json.dumps(data.get("pre_tokenizer")):
        return None
    vocabulary = tokenizer.get_vocab(with_added_tokens=True)
    lengths = np.zeros(max(vocabulary.values(), default=0) + 1, np.int32)
    for token, index in vocabulary.items():
        lengths[index] = len(token)  # byte-level vocabularies spell each byte as one character
    for added in data["added_tokens"]:
        lengths[added["id"]] = len(added["content"].encode())
    return lengths


def _fast_tokenizer(tokenizer_json: str) -> Any:
    import fastokens

    return fastokens.Tokenizer.from_json_str(tokenizer_json)


_PROBES = (
    "", " ", "\n\n", "\t x  y   z ", "Hello, world! It's 2026-11-22; don't PANIC.", "a" * 300, "    indented\n\tcode();\r\n",
    "Grüße aus Köln, où l'été naïve çà", "東京都は日本の首都です。 中文测试。", "Привет, мир! Ελληνικά עברית العربية हिन्दी ไทย",
    "👩‍👩‍👧‍👦 🇩🇪 e\u0301 \u200b\ufeff\u00a0\u3000", "1234567890 3.14159 0x1F 1e-9", "{\"a\": [1, {\"b\": null}]}", "<|x|> </s> [INST] <<SYS>>",
    "ｆｕｌｌｗｉｄｔｈ ﬁ ② Ⅳ ½", "...!!!???---===***", "CamelCaseWords snake_case_words kebab-case", "\x00\x01\x7f",
)  # fmt: skip


def fast_encodes_alike(spec: TokenizerSpec, texts: Sequence[str] = ()) -> str | None:
    """None when fastokens gives the tokenizers library's ids for probes and `texts`; else why it is not used."""
    try:
        fast = Encoder(spec, fast=True)
    except ImportError:
        return "fastokens is not installed"
    except ValueError as error:
        return f"fastokens cannot load this tokenizer ({' '.join(str(error).split())[:120]})"
    controls = list(fast.control_tokens)[:64]
    probes = [*_PROBES, "".join(f"{c} x\n{c}" for c in controls), *(f" a{c} b" for c in controls), *texts]
    encoded = fast.encode(probes)
    for i, text in enumerate(probes):
        if not np.array_equal(encoded.ids[encoded.offsets[i] : encoded.offsets[i + 1]], fast.encode_reference(text)):
            return f"fastokens encodes {text[:40]!r} differently"
    return None
