"""Plain text that is too long becomes pieces in which each token has its loss once."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from pipelines.chat import Rendered
from pipelines.core.conversation import Conversation, Turn
from pipelines.data.sample import Sample
from pipelines.data.text_pieces import text_pieces
from pipelines.data.tokenized_table import TRAIN

SAMPLE = Sample(3, Conversation((Turn("text", "x"),)), TRAIN, [1], b"c", 1, None)


class Decoder:
    """A renderer that writes token ids as numbers."""

    def decode(self, ids: np.ndarray) -> str:
        return " ".join(map(str, ids.tolist()))


def pieces_of(length: int, row_tokens: int, policy: str) -> list[tuple[Sample, Rendered]]:
    text = Rendered(np.arange(100, 100 + length, dtype=np.int32), np.ones(length, np.float32))
    decoder: Any = Decoder()
    samples, batch = text_pieces(SAMPLE, text, decoder, row_tokens, policy)
    assert text.loss_weights.all()  # the text's own weights stay
    return [(sample, batch[i]) for i, sample in enumerate(samples)]


@pytest.mark.parametrize("length", [17, 31, 32, 33, 46, 47, 100])
def test_each_token_has_its_loss_once_after_the_token_before_it(length: int) -> None:
    pieces = pieces_of(length, 16, "split")
    pairs = []
    for number, (sample, tokens) in enumerate(pieces, 1):
        assert (sample.row, sample.piece, sample.cluster_id) == (3, number, b"c")
        assert 2 <= len(tokens.input_ids) <= 16
        assert sample.conversation.is_text
        assert sample.conversation.turns[0].content.split()[0] == str(tokens.input_ids[0])
        ids, labels = tokens.input_ids.tolist(), tokens.loss_weights[1:] > 0
        pairs += [
            pair for pair, label in zip(itertools.pairwise(ids), labels, strict=True) if label
        ]
    assert pairs == [(100 + i, 101 + i) for i in range(length - 1)]
    weights = sum(tokens.num_loss_tokens for _, tokens in pieces)
    assert weights == length  # the first token of the text is in the mask too, as in short texts


def test_truncate_takes_the_first_piece_and_drop_none() -> None:
    ((sample, tokens),) = pieces_of(40, 16, "truncate")
    assert sample.piece == 1 and tokens.input_ids.tolist() == list(range(100, 116))
    assert pieces_of(40, 16, "drop") == []
