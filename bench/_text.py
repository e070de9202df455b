"""Generated text for benchmarks: rows of alpaca's lengths, and a tokenizer of 100,000 tokens."""

from __future__ import annotations

import functools
import json
import re
import sysconfig
from collections import Counter
from pathlib import Path

import numpy as np

_WORDS = re.compile(r"[A-Za-z][a-z]*")
_MEAN_WORDS, _BASE_ROWS, _VOCABULARY = 130, 20_000, 100_000


@functools.cache
def library_files() -> tuple[str, ...]:
    """Source files of Python's library and its installed packages, every n-th of them."""
    paths = sysconfig.get_paths()
    files = [p for key in ("stdlib", "purelib") for p in sorted(Path(paths[key]).rglob("*.py"))]
    return tuple(str(p) for p in files[:: max(1, len(files) // 4000)])


@functools.cache
def _lines() -> tuple[str, ...]:
    """`_BASE_ROWS` alpaca-like rows as JSON, from behind the opening of the instruction."""
    counts: Counter[str] = Counter()
    for path in library_files()[:1500]:
        counts.update(_WORDS.findall(Path(path).read_text(errors="ignore")))
    words, weights = zip(*counts.most_common(30_000), strict=True)
    rng = np.random.default_rng(0)
    cumulative = np.cumsum(np.array(weights, float) / sum(weights))
    rows = []
    for size in np.clip(rng.lognormal(np.log(_MEAN_WORDS) - 0.2, 0.65, _BASE_ROWS), 4, 900).astype(
        int
    ):
        drawn = [words[i] for i in np.searchsorted(cumulative, rng.random(size + 15))]
        answer = re.sub(r"((?:\S+ ){14}\S+) ", r"\1.\n", " ".join(drawn[15:]))
        rows.append(
            json.dumps(
                {"instruction": " ".join(drawn[:15]) + "?", "input": "", "output": answer + "."}
            )[17:]
        )
    return tuple(rows)


def write_rows(path: Path, count: int) -> Path:
    """A file of `count` different alpaca rows, one a line, about 800 characters long."""
    lines = _lines()
    with open(path, "w") as out:
        out.writelines(f'{{"instruction": "{i}: {lines[i % len(lines)]}\n' for i in range(count))
    return path


def long_vocabulary_tokenizer(folder: Path) -> str:
    """The JSON of a byte-level BPE trained on Python sources, with the pocket's special tokens."""
    import tokenizers
    from tokenizers import decoders, models, pre_tokenizers, trainers

    path = folder / "tokenizer.json"
    if path.exists():
        return path.read_text()
    pattern = (
        r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )
    tokenizer = tokenizers.Tokenizer(models.BPE())
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    special_tokens = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=special_tokens,
        initial_alphabet=alphabet,
        show_progress=False,
    )
    texts = (Path(name).read_text(errors="ignore") for name in library_files())
    tokenizer.train_from_iterator(texts, trainer)
    path.write_text(tokenizer.to_str())
    return path.read_text()
