"""The scale of an adapter: the factor s in y = W0 x + s B A x."""

from __future__ import annotations

import math


def lora_scale(alpha: float, r: int, rslora: bool = False) -> float:
    """alpha / r (LoRA: Hu et al. 2021, arXiv:2106.09685), or alpha / sqrt(r) when rank-stabilised.

    rsLoRA (Kalajdzievski 2023, arXiv:2312.03732) keeps the size of the update independent of r.
    """
    return alpha / math.sqrt(r) if rslora else alpha / r
