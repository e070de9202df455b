"""Choosing the next token of one row."""

from __future__ import annotations

import torch

from serve_app.engines.protocol import GenerationRequest

_GREEDY_BELOW = 1e-5  # dividing by less overflows


def make_generator(request: GenerationRequest, device: torch.device) -> torch.Generator | None:
    """The request's own random generator, or None for a greedy one.

    With a generator of its own, a request's seed gives the same answer in any batch.
    """
    if request.temperature < _GREEDY_BELOW:
        return None
    generator = torch.Generator(device=device)
    generator.manual_seed(request.seed) if request.seed is not None else generator.seed()
    return generator


def sample(logits: torch.Tensor, request: GenerationRequest, generator: torch.Generator) -> int:
    """Draw a token from softmax(logits / temperature) by nucleus sampling.

    `logits` is [V] fp32. The nucleus is the smallest set of tokens whose probability reaches
    `top_p` (Holtzman et al. 2019, arXiv:1904.09751).
    """
    probabilities = torch.softmax(logits / request.temperature, -1)
    if request.top_p < 1:
        ordered, index = probabilities.sort(descending=True)
        nucleus = ordered * (ordered.cumsum(0) - ordered < request.top_p)
        return int(index[torch.multinomial(nucleus, 1, generator=generator)])
    return int(torch.multinomial(probabilities, 1, generator=generator))
