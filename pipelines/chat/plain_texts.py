"""Plain texts for continued pretraining: their ids, between the tokenizer's own first and last."""

from __future__ import annotations

import numpy as np
import tokenizers

from pipelines.chat.encoder import Encoder
from pipelines.chat.loss_mask import LossMasks
from pipelines.chat.template import TemplateError
from pipelines.chat.tokenizer_spec import TokenizerSpec
from pipelines.core.conversation import Turn


class PlainTexts:
    """Encodes plain texts with one tokenizer; `end_id` ends each."""

    def __init__(self, spec: TokenizerSpec, encoder: Encoder) -> None:
        self._encoder = encoder
        self._begin = np.array(_begin_ids(spec.tokenizer_json), np.int32)
        end = spec.named_tokens.get("eos_token", "")
        self.end_id = encoder.special_tokens.ids.get(end)

    def encode(self, turn: Turn) -> tuple[np.ndarray, LossMasks]:
        """The ids of a text, int32 [T], and their masks: all tokens have a loss.

        Special tokens that the text spells stay text. Raises TemplateError when the tokenizer has
        no end token.
        """
        if self.end_id is None:
            raise TemplateError("plain text needs an end token, and the tokenizer has no eos_token")
        ids = np.concatenate(
            [self._begin, self._encoder.encode_text(turn.content), [np.int32(self.end_id)]]
        ).astype(np.int32)
        return ids, LossMasks.all_trained(len(ids), turn.weight if turn.train else 0.0)


def _begin_ids(tokenizer_json: str) -> list[int]:
    """The ids that a tokenizer itself sets before a text, a bos token or none."""
    tokenizer = tokenizers.Tokenizer.from_str(tokenizer_json)
    ids = tokenizer.encode("a", add_special_tokens=True).ids
    alone = tokenizer.encode("a", add_special_tokens=False).ids
    positions = range(len(ids))
    return next((ids[:i] for i in positions if ids[i : i + len(alone)] == alone), [])
