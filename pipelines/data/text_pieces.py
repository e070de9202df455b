"""Plain text longer than a packed row, cut into pieces by its tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from pipelines.chat import ChatRenderer, Rendered, RenderedBatch
from pipelines.chat.loss_mask import LossMasks
from pipelines.core.conversation import Conversation, Turn
from pipelines.data.sample import Sample

Pieces = tuple[Sequence[Sample], RenderedBatch]


def text_pieces(
    sample: Sample, rendered: Rendered, renderer: ChatRenderer, row_tokens: int, policy: str
) -> Pieces:
    """The pieces of a plain text of more than `row_tokens` tokens, with their tokens.

    `policy` split: all pieces. A piece begins with the last token of the piece before it, as
    context, so that each token of the text has its loss once, after the same token as in the text.
    The text is not tokenized again: only its last piece has its end token. truncate: the first
    piece. drop: none.
    """
    starts = range(0, len(rendered.input_ids) - 1, row_tokens - 1)
    starts = starts[: {"drop": 0, "truncate": 1}.get(policy)]
    parts = [slice(start, start + row_tokens) for start in starts]
    ids = [rendered.input_ids[part] for part in parts]
    weights = [rendered.loss_weights[part].copy() for part in parts]
    for piece_weights in weights[1:]:
        piece_weights[0] = 0
    pieces = [
        replace(
            sample,
            conversation=Conversation((Turn("text", renderer.decode(piece_ids)),)),
            piece=number,
        )
        for number, piece_ids in enumerate(ids, 1)
    ]
    flat_weights = np.concatenate([np.empty(0, np.float32), *weights])
    masks = replace(LossMasks.empty(len(parts)), weights=flat_weights)
    offsets = np.cumsum([0, *map(len, ids)])
    flat = np.concatenate([np.empty(0, np.int32), *ids])
    return pieces, RenderedBatch(flat, masks, offsets, {})
