"""Texts to token ids and token offsets in batches, without a Python object for each token."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import tokenizers

from pipelines.chat.special_tokens import SpecialTokens
from pipelines.chat.token_offsets import build_token_lengths
from pipelines.chat.tokenizer_spec import TokenizerSpec
from pipelines.core.errors import UserError

# L: texts, T: tokens of all texts


@dataclass(frozen=True)
class Encoded:
    """`ids` int32 [T]; text i has the tokens `offsets[i]:offsets[i + 1]`, int64 [L + 1].

    `starts` and `ends`, int64 [T], are each token's byte offsets in all texts joined, where text i
    begins at `bases[i]`, int64 [L + 1].
    """

    ids: np.ndarray
    offsets: np.ndarray
    starts: np.ndarray
    ends: np.ndarray
    bases: np.ndarray


class Encoder:
    """A tokenizer without post-processing: the chat template alone writes special tokens.

    `fast` encodes with fastokens, which must give the same ids (check `fastokens_mismatch` first).
    `use_token_lengths` False asks the tokenizers library for all offsets, which is slow; tests
    compare the two.
    """

    def __init__(
        self,
        spec: TokenizerSpec,
        fast: bool = False,
        special_tokens: SpecialTokens | None = None,
        use_token_lengths: bool = True,
    ) -> None:
        data = json.loads(spec.tokenizer_json)
        data["post_processor"] = data["padding"] = data["truncation"] = None
        text = json.dumps(data)
        added = data["added_tokens"]
        self._tokenizer = tokenizers.Tokenizer.from_str(text)
        self._fast = _fast_tokenizer(text) if fast else None
        self._data = data
        self.added_texts = [t["content"] for t in added]
        self.special_tokens = special_tokens or SpecialTokens(added, spec.named_tokens.values())
        self._stripping_ids = np.array(
            [t["id"] for t in added if t["rstrip"] or t["lstrip"]], np.int64
        )
        self._strips_right = {t["content"] for t in added if t["rstrip"]}
        self._strips_left = {t["content"] for t in added if t["lstrip"]}
        self.token_lengths = None
        if use_token_lengths:
            vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
            self.token_lengths = build_token_lengths(vocabulary, data)

    @functools.cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """Encodes text in which special tokens and markers stay plain text."""
        return _without_special(self._data, self.special_tokens)

    @functools.cached_property
    def _plain_inside(self) -> tokenizers.Tokenizer:
        """The same for a stretch inside a text: some tokenizers set a space before a text's first
        word only, and this stretch does not begin with that word.
        """
        steps = json.dumps(self._data["pre_tokenizer"])
        inside = steps.replace('"prepend_scheme": "first"', '"prepend_scheme": "never"')
        if inside == steps:
            return self._plain
        data = {**self._data, "pre_tokenizer": json.loads(inside)}
        return _without_special(data, self.special_tokens)

    def encode(self, texts: Sequence[str], sizes: Sequence[int] | None = None) -> Encoded:
        """Encode complete texts; special tokens in them are recognised. `sizes`: their bytes.

        Raises UnicodeEncodeError.
        """
        sizes = sizes or [len(t) if t.isascii() else len(t.encode()) for t in texts]
        if self._fast is not None:
            flat, bounds = self._fast.encode_batch_flat(list(texts))
            ids, offsets = np.frombuffer(flat, np.int32), np.frombuffer(bounds, np.int64)
        else:
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
            offsets = np.cumsum([0, *map(len, encodings)], dtype=np.int64)
            ids = np.empty(offsets[-1], np.int32)
            # One text's list at a time: the library returns Python lists, not arrays.
            for i, encoding in enumerate(encodings):
                ids[offsets[i] : offsets[i + 1]] = encoding.ids
        bases = np.cumsum([0, *sizes], dtype=np.int64)
        return self._with_offsets(self._tokenizer, texts, ids, offsets, bases)

    def _with_offsets(
        self,
        tokenizer: tokenizers.Tokenizer,
        texts: Sequence[str],
        ids: np.ndarray,
        offsets: np.ndarray,
        bases: np.ndarray,
    ) -> Encoded:
        """Byte offsets: sums of the tokens' own lengths, or, for texts to whose bytes these do not
        add up, the tokenizers library's.
        """
        if self.token_lengths is None:
            starts, ends = np.empty(len(ids), np.int64), np.empty(len(ids), np.int64)
            unknown = np.arange(len(texts))
        else:
            starts, ends, unknown = self.token_lengths.token_offsets(ids, offsets, bases, texts)
        for i in unknown.tolist():
            encoding = tokenizer.encode(texts[i], add_special_tokens=False)
            part = slice(offsets[i], offsets[i + 1])
            to_byte = byte_offsets(texts[i]) + bases[i]
            flat = np.fromiter(chain.from_iterable(encoding.offsets), np.int64, 2 * len(encoding))
            characters = flat.reshape(-1, 2)
            starts[part], ends[part] = to_byte[characters[:, 0]], to_byte[characters[:, 1]]
            self._exclude_spaces(ids[part], starts[part], ends[part], characters, texts[i])
        return Encoded(ids, offsets, starts, ends, bases)

    def _exclude_spaces(
        self,
        ids: np.ndarray,
        starts: np.ndarray,
        ends: np.ndarray,
        characters: np.ndarray,
        text: str,
    ) -> None:
        """Cut the white space that a special token absorbs (`lstrip`, `rstrip`) from its offsets,
        in place: a stop token must end where its text ends.
        """
        for i in np.flatnonzero(np.isin(ids, self._stripping_ids)).tolist():
            token = text[characters[i, 0] : characters[i, 1]]
            starts[i] += len(token[: len(token) - len(token.lstrip())].encode())
            ends[i] -= len(token[len(token.rstrip()) :].encode())

    def encode_protected(
        self,
        text: str,
        content_spans: Sequence[tuple[int, int]],
        context_spans: Sequence[tuple[int, int]] = (),
    ) -> Encoded:
        """Encode a text without injected special tokens; spans are in characters.

        No special token comes from `content_spans`, and no marker from `context_spans`. All other
        special tokens and markers are found first and the stretches between them encoded alone,
        which is what the tokenizer itself does with added tokens.
        """
        to_byte = byte_offsets(text)
        ids: list[np.ndarray] = [np.empty(0, np.int32)]
        starts, ends = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
        position, strips = 0, False
        for match in [*self.special_tokens.any_pattern.finditer(text), None]:
            if match:
                special = match.group() in self.special_tokens.ids
                if _touches(match, content_spans if special else context_spans):
                    continue
            stretch = text[position : match.start() if match else None]
            lead = len(stretch) - len(stretch.lstrip()) if strips else 0
            stretch = stretch[lead:]
            if match and match.group() in self._strips_left:
                stretch = stretch.rstrip()
            if stretch:
                plain = self._plain_inside if position + lead else self._plain
                encoded, start = self._encode_plain(plain, stretch), to_byte[position + lead]
                ids.append(encoded.ids)
                starts.append(encoded.starts + start)
                ends.append(encoded.ends + start)
            if match:
                ids.append(np.array([self._id_of(match.group())], np.int32))
                starts.append(to_byte[[match.start()]])
                ends.append(to_byte[[match.end()]])
                position, strips = match.end(), match.group() in self._strips_right
        flat = np.concatenate(ids)
        offsets, bases = np.array([0, len(flat)]), np.array([0, to_byte[-1]])
        return Encoded(flat, offsets, np.concatenate(starts), np.concatenate(ends), bases)

    def encode_text(self, text: str) -> np.ndarray:
        """Ids of a text that no template wrote, int32 [T]: special tokens in it stay text."""
        if self.special_tokens.occur_in(text, by_assistant=False):
            return self._encode_plain(self._plain, text).ids
        return self.encode([text]).ids

    def _id_of(self, text: str) -> int:
        special_id = self.special_tokens.ids.get(text)
        return self.special_tokens.marker_ids[text] if special_id is None else special_id

    def _encode_plain(self, plain: tokenizers.Tokenizer, text: str) -> Encoded:
        ids = np.asarray(plain.encode(text, add_special_tokens=False).ids, np.int32)
        offsets, bases = np.array([0, len(ids)]), np.array([0, len(text.encode())])
        return self._with_offsets(plain, [text], ids, offsets, bases)

    def decode(self, ids: Sequence[int] | np.ndarray, skip_special_tokens: bool = True) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens)

    def decode_token(self, token: int) -> str:
        """One token's text, for display; bytes of a split character show as U+FFFD."""
        return self._tokenizer.decode([int(token)], skip_special_tokens=False)

    def check_fastokens(self, text: str) -> None:
        """Raise UserError when this encoder gives other ids than the tokenizers library."""
        if not np.array_equal(self.encode([text]).ids, self.encode_reference(text)):
            raise UserError(
                f"fastokens encodes {text[:60]!r}... differently; set data.fast_tokenizer=false"
            )

    def encode_reference(self, text: str) -> np.ndarray:
        """Ids from the tokenizers library, even if `fast`."""
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)


def _touches(match: re.Match[str], spans: Sequence[tuple[int, int]]) -> bool:
    return any(first < match.end() and match.start() < last for first, last in spans)


def _without_special(data: dict[str, Any], tokens: SpecialTokens) -> tokenizers.Tokenizer:
    """The tokenizer with special tokens and markers encoded as plain text.

    The library leaves out tokens flagged special. Deleting them from the added tokens instead would
    shift the ids of the others.
    """
    plain = tokens.ids.keys() | tokens.marker_ids.keys()
    added = [{**token, "special": token["content"] in plain} for token in data["added_tokens"]]
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps({**data, "added_tokens": added}))
    tokenizer.encode_special_tokens = True
    return tokenizer


def byte_offsets(text: str) -> np.ndarray:
    """Byte offset of each character of a text and of its end, int64 [len(text) + 1].

    Raises UnicodeEncodeError.
    """
    if text.isascii():
        return np.arange(len(text) + 1)
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    # UTF-8 takes one byte more from each of these code points on.
    sizes = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    return np.concatenate(([0], np.cumsum(sizes)))


def _fast_tokenizer(tokenizer_json: str) -> Any:
    import fastokens

    return fastokens.Tokenizer.from_json_str(tokenizer_json)


_PROBES = (
    "", " ", "\n\n", "\t x  y   z ", "Hello, world! It's 2026-11-22; don't PANIC.", "a" * 300,
    "    indented\n\tcode();\r\n", "Grüße aus Köln, où l'été naïve çà",
    "東京都は日本の首都です。 中文测试。", "Привет, мир! Ελληνικά עברית العربية हिन्दी ไทย",
    "👩‍👩‍👧‍👦 🇩🇪 e\u0301 \u200b\ufeff\u00a0\u3000", "1234567890 3.14159 0x1F 1e-9",
    "{\"a\": [1, {\"b\": null}]}", "<|x|> </s> [INST] <<SYS>>", "ｆｕｌｌｗｉｄｔｈ ﬁ ② Ⅳ ½",
    "...!!!???---===***", "CamelCaseWords snake_case_words kebab-case", "\x00\x01\x7f",
)  # fmt: skip


def fastokens_mismatch(spec: TokenizerSpec, texts: Sequence[str] = ()) -> str | None:
    """None if fastokens gives the tokenizers library's ids for probes and `texts`; else the reason
    not to use it.
    """
    try:
        fast = Encoder(spec, fast=True)
    except ImportError:
        return "fastokens is not installed"
    except ValueError as error:
        return f"fastokens cannot load this tokenizer ({' '.join(str(error).split())[:120]})"
    added = fast.added_texts
    added = added[:: max(1, len(added) // 128)]  # special or not: both are matched first
    probes = [*_PROBES, "".join(f"{c} x\n{c}" for c in added), *(f" a{c} b" for c in added), *texts]
    encoded = fast.encode(probes)
    for i, text in enumerate(probes):
        ids = encoded.ids[encoded.offsets[i] : encoded.offsets[i + 1]]
        if not np.array_equal(ids, fast.encode_reference(text)):
            return f"fastokens encodes {text[:40]!r} differently"
    return None
