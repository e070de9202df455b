"""Text to token ids in batches, with each token's place in the text, without a Python object a token."""

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
from pipelines.chat.token_offsets import token_lengths_of
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

    def __init__(
        self, spec: TokenizerSpec, fast: bool = False, controls: SpecialTokens | None = None
    ) -> None:
        data = json.loads(spec.tokenizer_json)
        data["post_processor"] = data["padding"] = data["truncation"] = None
        text = json.dumps(data)
        self._tokenizer = tokenizers.Tokenizer.from_str(text)
        self._fast = _fast_tokenizer(text) if fast else None
        self._data = data
        self.added_texts = [t["content"] for t in data["added_tokens"]]
        self.controls = controls or SpecialTokens(data["added_tokens"], spec.named_tokens.values())
        self._eaters = np.array(
            [t["id"] for t in data["added_tokens"] if t["rstrip"] or t["lstrip"]], np.int64
        )
        self._eats_right = {t["content"] for t in data["added_tokens"] if t["rstrip"]}
        self._eats_left = {t["content"] for t in data["added_tokens"] if t["lstrip"]}
        self._widths = token_lengths_of(self._tokenizer.get_vocab(with_added_tokens=True), data)

    @functools.cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """For a text's first stretch: control tokens and markers stay text. Taken out of the list instead, they would
        change the ids of the others.
        """
        return _without(self._data, self.controls)

    @functools.cached_property
    def _plain_inside(self) -> tokenizers.Tokenizer:
        """For a stretch behind another, which begins no text: a space may be set before the first word of a text only."""
        text = json.dumps(self._data["pre_tokenizer"])
        inside = text.replace('"prepend_scheme": "first"', '"prepend_scheme": "never"')
        return (
            _without({**self._data, "pre_tokenizer": json.loads(inside)}, self.controls)
            if inside != text
            else self._plain
        )

    def encode(self, texts: Sequence[str], sizes: Sequence[int] | None = None) -> Encoded:
        """Encode whole texts, of `sizes` bytes if these are known; control tokens are recognized. Raises UnicodeEncodeError."""
        sizes = sizes or [len(t) if t.isascii() else len(t.encode()) for t in texts]
        if self._fast is not None:
            flat, bounds = self._fast.encode_batch_flat(list(texts))
            ids, offsets = np.frombuffer(flat, np.int32), np.frombuffer(bounds, np.int64)
        else:
            encodings = self._tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
            offsets = np.cumsum([0, *map(len, encodings)], dtype=np.int64)
            ids = np.empty(offsets[-1], np.int32)
            for i, encoding in enumerate(
                encodings
            ):  # one text's list at a time: the library has no arrays
                ids[offsets[i] : offsets[i + 1]] = encoding.ids
        return self._placed(
            self._tokenizer, texts, ids, offsets, np.cumsum([0, *sizes], dtype=np.int64)
        )

    def _placed(
        self,
        tokenizer: tokenizers.Tokenizer,
        texts: Sequence[str],
        ids: np.ndarray,
        offsets: np.ndarray,
        bases: np.ndarray,
    ) -> Encoded:
        """Byte offsets from the tokens' own lengths where these add up to the text, else from the tokenizer's."""
        if self._widths is None:
            starts, ends, wrong = (
                np.empty(len(ids), np.int64),
                np.empty(len(ids), np.int64),
                np.arange(len(texts)),
            )
        else:
            starts, ends, wrong = self._widths.places(ids, offsets, bases, texts)
        for i in wrong.tolist():
            one = tokenizer.encode(texts[i], add_special_tokens=False)
            part = slice(offsets[i], offsets[i + 1])
            at_byte = byte_offsets(texts[i]) + bases[i]
            places = np.fromiter(chain.from_iterable(one.offsets), np.int64, 2 * len(one)).reshape(
                -1, 2
            )
            starts[part], ends[part] = at_byte[places[:, 0]], at_byte[places[:, 1]]
            self._shrink(ids[part], starts[part], ends[part], places, texts[i])
        return Encoded(ids, offsets, starts, ends, bases)

    def _shrink(
        self, ids: np.ndarray, starts: np.ndarray, ends: np.ndarray, places: np.ndarray, text: str
    ) -> None:
        """Leave the white space that a control token ate out of its place: a stop token ends where its text ends."""
        for i in np.flatnonzero(np.isin(ids, self._eaters)).tolist():
            eaten = text[places[i, 0] : places[i, 1]]
            starts[i] += len(eaten[: len(eaten) - len(eaten.lstrip())].encode())
            ends[i] -= len(eaten[len(eaten.rstrip()) :].encode())

    def encode_between_controls(
        self, text: str, data: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]] = ()
    ) -> Encoded:
        """Encode a text of which the spans `data` (characters) came from messages: no control token arises from these,
        and no marker from those of them in `others`.

        The text is cut at the other control tokens and markers, as the tokenizer itself cuts it.
        """
        at_byte = byte_offsets(text)
        ids, starts, ends = (
            [np.empty(0, np.int32)],
            [np.empty(0, np.int64)],
            [np.empty(0, np.int64)],
        )
        position, eat = 0, False
        for match in [*self.controls.either.finditer(text), None]:
            if match and _touches(match, data if match.group() in self.controls.tokens else others):
                continue
            stretch = text[position : match.start() if match else None]
            lead = len(stretch) - len(stretch.lstrip()) if eat else 0
            stretch = stretch[lead:]
            if match and match.group() in self._eats_left:
                stretch = stretch.rstrip()
            if stretch:
                plain = self._plain_inside if position + lead else self._plain
                one, start = self._alone(plain, stretch), at_byte[position + lead]
                ids.append(one.ids)
                starts.append(one.starts + start)
                ends.append(one.ends + start)
            if match:
                ids.append(np.array([self._id_of(match.group())], np.int32))
                starts.append(at_byte[[match.start()]])
                ends.append(at_byte[[match.end()]])
                position, eat = match.end(), match.group() in self._eats_right
        flat = np.concatenate(ids)
        offsets, bases = np.array([0, len(flat)]), np.array([0, at_byte[-1]])
        return Encoded(flat, offsets, np.concatenate(starts), np.concatenate(ends), bases)

    def _id_of(self, text: str) -> int:
        found = self.controls.tokens.get(text)
        return self.controls.markers[text] if found is None else found

    def _alone(self, plain: tokenizers.Tokenizer, text: str) -> Encoded:
        ids = np.asarray(plain.encode(text, add_special_tokens=False).ids, np.int32)
        return self._placed(
            plain, [text], ids, np.array([0, len(ids)]), np.array([0, len(text.encode())])
        )

    def decode(self, ids: Sequence[int] | np.ndarray, skip_control: bool = True) -> str:
        return self._tokenizer.decode([int(i) for i in ids], skip_special_tokens=skip_control)

    def decode_one(self, token: int) -> str:
        """One token's text, for display; bytes of a split character show as U+FFFD."""
        return self._tokenizer.decode([int(token)], skip_special_tokens=False)

    def encode_reference(self, text: str) -> np.ndarray:
        """Ids by the tokenizers library itself, whatever `fast` says."""
        return np.asarray(self._tokenizer.encode(text, add_special_tokens=False).ids, np.int32)


def _touches(match: re.Match[str], spans: Sequence[tuple[int, int]]) -> bool:
    return any(first < match.end() and match.start() < last for first, last in spans)


def _without(data: dict[str, Any], controls: SpecialTokens) -> tokenizers.Tokenizer:
    """The tokenizer with control tokens and markers encoded as the text that they are."""
    typed = controls.tokens.keys() | controls.markers.keys()
    added = [{**token, "special": token["content"] in typed} for token in data["added_tokens"]]
    tokenizer = tokenizers.Tokenizer.from_str(json.dumps({**data, "added_tokens": added}))
    tokenizer.encode_special_tokens = True
    return tokenizer


def byte_offsets(text: str) -> np.ndarray:
    """Byte offset of every character of a text and of its end, int64 [len(text) + 1]. Raises UnicodeEncodeError."""
    if text.isascii():
        return np.arange(len(text) + 1)
    codes = np.frombuffer(text.encode("utf-32-le"), np.uint32)
    widths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800) + (codes >= 0x10000)
    return np.concatenate(([0], np.cumsum(widths)))


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
    added = fast.added_texts
    added = added[:: max(1, len(added) // 128)]  # special or not: both are matched before all else
    probes = [*_PROBES, "".join(f"{c} x\n{c}" for c in added), *(f" a{c} b" for c in added), *texts]
    encoded = fast.encode(probes)
    for i, text in enumerate(probes):
        if not np.array_equal(
            encoded.ids[encoded.offsets[i] : encoded.offsets[i + 1]], fast.encode_reference(text)
        ):
            return f"fastokens encodes {text[:40]!r} differently"
    return None
