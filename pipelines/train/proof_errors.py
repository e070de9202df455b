"""The line with which a base is refused: what its proof found, or the error that it ended in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from pipelines.adapter_format.keys import KEY_PREFIX
from pipelines.core.errors import UserError, one_line
from pipelines.train.base_proof import BaseProof

_KINDS = (AttributeError, TypeError, NotImplementedError, ValueError, LookupError, AssertionError)
"""Errors that the same code on the same base raises again. A RuntimeError can come from a device
or from another worker, and may pass.
"""

_PLAIN_LAYERS = {"full_attention", "sliding_attention", "chunked_attention"}
_LOGIT_KEYS = ("logits_scaling", "logit_scale", "final_logit_softcapping", "lm_head_multiplier")
_LENGTH_ROPES = ("dynamic", "longrope")
_WINDOW_KEYS = ("sliding_window", "attention_chunk_size", "chunk_size", "window_size")


def check_proof(proof: BaseProof, base: str, model: Any) -> None:
    """Raise UserError unless the proof holds.

    `model` is the model that was proven. Its configuration and parameters suggest the cause; the
    proof's numbers alone decide.
    """
    if proof.holds:
        return
    base_name = f"model.base={base} ({_architecture(model)})"
    if not proof.leaks and proof.difference.is_small:
        names = [name.removeprefix(KEY_PREFIX) for name in proof.unreached]
        last = sorted({name.rsplit(".", 1)[-1] for name in names})
        raise UserError(
            f"{base_name}: the forward of a text does not call {len(names)} of the adapted "
            f"modules, first {names[0]}, so they would never train: leave {', '.join(last)} out of "
            "lora.targets and lora.modules_to_save"
        )
    reason = _leak_line(proof) if proof.leaks else _difference_line(proof)
    hint = _hint(proof, model)
    raise UserError(
        f"{base_name} cannot be trained in packs: {reason}"
        f"{f'; the base has {hint}' if hint else ''}: choose a base of another architecture "
        "(docs/bases.md lists them)"
    )


def _leak_line(proof: BaseProof) -> str:
    return (
        "the samples of a pack would see each other: other tokens in the first sample move the "
        f"losses of the others by {proof.leak:.2g} nats on average, and rounding moves them by "
        f"{proof.leak_limit:.2g} at most"
    )


def _difference_line(proof: BaseProof) -> str:
    difference = proof.difference
    size, limit, where = difference.mean, difference.limit, "on average"
    if size <= limit:
        size, limit = difference.block, difference.block_limit
        where = f"from token {difference.block_start + 1} of a sample on"
    return (
        f"packed training would compute another loss than transformers: {proof.packed_loss:.4f} "
        f"and {proof.reference_loss:.4f} nats a token, a difference of {size:.2g} {where}, of "
        f"which rounding explains {limit:.2g}"
    )


@contextmanager
def base_errors_as_user_errors(base: str) -> Iterator[None]:
    """Inside, an error of the base's own code becomes a UserError, which is not tried again."""
    try:
        yield
    except UserError:
        raise
    except _KINDS as error:
        raise UserError(
            f"model.base={base} cannot be trained: the code of its architecture raises "
            f"{type(error).__name__} ({one_line(error, 200)}): choose a base of another "
            "architecture (docs/bases.md lists them)"
        ) from error


def _architecture(model: Any) -> str:
    return str(model.config.model_type)


def _hint(proof: BaseProof, model: Any) -> str:
    """What in the base probably explains a failed proof; "" if nothing known does."""
    config = model.config.get_text_config()
    stateful = sorted(set(getattr(config, "layer_types", None) or ()) - _PLAIN_LAYERS)
    if proof.leaks and stateful:
        return f"layers that carry a state from token to token ({', '.join(stateful)})"
    ropes = _ropes(getattr(config, "rope_parameters", None))
    by_length = [rope for rope in ropes if rope in _LENGTH_ROPES]
    logits = [key for key in _LOGIT_KEYS if getattr(config, key, None) not in (None, 1, 1.0)]
    windows = [key for key in _WINDOW_KEYS if isinstance(getattr(config, key, None), int)]
    if logits:
        return ", ".join(f"{key}={getattr(config, key)}" for key in logits)
    if any("sink" in name for name, _ in model.named_parameters()):
        return "attention sinks"
    if by_length:
        return f"rotary positions that depend on the longest sample of a pack ({by_length[0]})"
    return ", ".join(f"{key}={getattr(config, key)}" for key in windows)


def _ropes(parameters: Any) -> list[str]:
    """The kinds of rotary positions: one for all layers, or one for each kind of layer."""
    if not isinstance(parameters, dict):
        return []
    own = [str(parameters.get("rope_type", ""))]
    return own + [kind for value in parameters.values() for kind in _ropes(value)]
