"""The table of supported bases: what can be done with a base, or the reason why not.

Training, merging, evaluation and serving ask these functions before they start anything;
`loraforge doctor BASE` prints the same answers. A refusal here is a clear line for a cause that
the configuration shows. What it does not show, the proof of the run decides.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from pipelines.config.schema import LoraConfig
from pipelines.core.errors import UserError
from pipelines.model.published import PublishedBase

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_LOGIT_FACTORS = (
    "logits_scaling",
    "logit_scale",
    "lm_head_multiplier",
    "final_logit_softcapping",
    "logits_soft_cap",
    "attn_logit_softcapping",
)


def load_refusal(base: PublishedBase) -> str:
    """The reason why a base cannot be loaded, with what to set instead; "" if there is none."""
    if "adapter_config.json" in base.files:
        return (
            "the folder has an adapter_config.json, so it is an adapter: set the base that this "
            "adapter was trained on, or merge the adapter into it first"
        )
    if base.quantization:
        return (
            f"its weights are quantized ({base.quantization}), and adapters are trained on, merged "
            "into and served with unquantized weights only: set the base that it was quantized "
            "from, and model.quantization=nf4 or fp8 for a small frozen base"
        )
    if base.values.get("is_encoder_decoder") or base.other_task:
        kind = base.other_task or "an encoder-decoder model"
        return f"it is {kind}, not a causal language model: choose a base that continues texts"
    if base.nested:
        return (
            f"it is a model of several parts ({base.nested}), such as text and images, and an "
            "adapter would be put on all of them: choose a text-only base"
        )
    return ""


def train_refusal(base: PublishedBase, row_tokens: int | None = None) -> str:
    """The reason why a base cannot be trained in packs of `row_tokens` tokens, or "".

    None stands for packs as short as the base needs.
    """
    if base.recurrent_layers:
        return (
            f"some of its layers ({base.recurrent_layers}) carry a state from token to token, so "
            "samples of a pack would see each other: choose a base with attention in all layers"
        )
    for key in _LOGIT_FACTORS:
        if base.values.get(key) not in (None, 0, 1):
            return (
                f"it scales its logits ({key}={base.values[key]}), which packed training does not "
                "support: choose a base without it"
            )
    for key, size in base.windows.items() if row_tokens else ():
        if row_tokens and size < row_tokens:
            return (
                f"it attends to the last {size} tokens only ({key}), but a pack may contain a "
                f"sample of data.row_tokens={row_tokens}: set data.row_tokens={size} or less"
            )
    return _rotation_refusal(base, "data.row_tokens", row_tokens)


def adapter_refusal(base: PublishedBase, lora: LoraConfig, method: str = "lora") -> str:
    """The reason why an adapter as in `lora` cannot be trained on a base, or ""."""
    if not base.num_experts:
        return ""
    routed = (
        f"it routes each token to some of {base.num_experts} experts, and the loss that balances "
        "them is not computed"
    )
    if method == "full":
        return (
            f"{routed}, so train.method=full would train its router wrongly: set train.method=lora"
        )
    if lora.targets == "all-linear":
        return (
            f"{routed}, so adapters on router and experts are refused: set lora.targets=attention, "
            "or the names of its attention's modules"
        )
    return ""


def serve_refusal(base: PublishedBase, max_tokens: int | None = None) -> str:
    """The reason why a base cannot be served with rows of up to `max_tokens` tokens, or ""."""
    if base.recurrent_layers:
        return (
            f"some of its layers ({base.recurrent_layers}) carry a state from token to token, "
            "which the engine's cache does not hold: serve it with another engine"
        )
    for key, size in base.windows.items() if max_tokens else ():
        if max_tokens and size < max_tokens:
            return (
                f"it attends to the last {size} tokens only ({key}): set "
                f"serve.max_model_tokens={size} or less"
            )
    return _rotation_refusal(base, "serve.max_model_tokens", max_tokens)


def evaluate_refusal(base: PublishedBase, num_tokens: int) -> str:
    """The reason why samples of up to `num_tokens` tokens, answers included, cannot be scored."""
    if base.recurrent_layers:
        return (
            f"some of its layers ({base.recurrent_layers}) carry a state from token to token, into "
            "which the padding of a batch goes: choose a base with attention in all layers"
        )
    chunk = base.windows.get("attention_chunk_size", num_tokens)
    if chunk < num_tokens:
        return (
            f"it attends in chunks of {chunk} tokens, which transformers counts from the padding "
            f"of a batch: set data.row_tokens plus eval.max_new_tokens to {chunk} or less"
        )
    return _rotation_refusal(base, "data.row_tokens plus eval.max_new_tokens", num_tokens)


def sample_limit(base: PublishedBase) -> str:
    """The longest sample that a base is trained and served with, and why; "" without a limit."""
    limits = [(size, key) for key, size in base.windows.items()]
    if base.rotation_limit:
        limits.append((base.rotation_limit[1], base.rotation_limit[0]))
    return "up to {:,} tokens ({})".format(*min(limits)) if limits else ""


def quantize_refusal(base: PublishedBase, quantization: str) -> str:
    """The reason why a base cannot be quantized while it is loaded, or ""."""
    if quantization != "none" and base.num_experts:
        return (
            f"model.quantization={quantization} quantizes linear layers, and its "
            f"{base.num_experts} experts are none, so nearly all weights would stay as they are: "
            "set model.quantization=none"
        )
    return ""


def _rotation_refusal(base: PublishedBase, key: str, tokens: int | None) -> str:
    limit = base.rotation_limit
    if not limit or not tokens or tokens <= limit[1]:
        return ""
    return (
        f"its {limit[0]} rotates the tokens of a whole batch in another way when one sample has "
        f"more than {limit[1]} tokens, so a sample's result would depend on its neighbours: set "
        f"{key}={limit[1]} or less"
    )


def refuse(base: PublishedBase, *reasons: str) -> None:
    """Raise UserError with the first of the reasons that is not empty."""
    for reason in reasons:
        if reason:
            raise UserError(f"model.base={base.name}: {reason}")


def published_values(config: Any) -> PublishedBase:
    """The base of a loaded configuration, which has the defaults of its class, too."""
    return PublishedBase(config.name_or_path or "", config.to_dict())


def check_base(model: PreTrainedModel, row_tokens: int) -> None:
    """Raise UserError for a base that packed training would not compute correctly.

    `model` may be on the meta device; `row_tokens` is the length of a pack. Attention dropout is
    only logged: training leaves it out.
    """
    base = published_values(model.config)
    refuse(base, train_refusal(base, row_tokens))
    check_layout(model, base.name)
    if base.values.get("attention_dropout"):
        logging.getLogger(__name__).warning(
            "model.base has attention_dropout=%s, which training leaves out",
            base.values["attention_dropout"],
        )


def check_layout(model: Any, name: str) -> None:
    """Raise UserError unless packed training can run a causal model's layers, or those of a class.

    It calls the layers in `model.model` and the head `model.lm_head`, as Llama's are called, and
    puts its own function in the place of the layers' attention.
    """
    replaceable = getattr(model, "_supports_attention_backend", False)
    reason = "" if replaceable else "its code in transformers has an attention of its own"
    if not reason and not isinstance(model, type):
        absent = [part for part in ("model", "lm_head") if not hasattr(model, part)]
        if absent:
            reason = f"its causal model has no {' and no '.join(absent)}"
        elif model.get_output_embeddings() is not model.lm_head:
            reason = "its lm_head does not compute the logits alone"
    if reason:
        raise UserError(
            f"model.base={name} ({_architecture_name(model)}) cannot be trained in packs: "
            f"{reason}: choose a base of another architecture (docs/bases.md lists them)"
        )


def _architecture_name(model: Any) -> str:
    return (model if isinstance(model, type) else type(model)).__name__


def check_fp8(model: PreTrainedModel) -> None:
    """Raise UserError when the model's device or one of its linears cannot multiply in float8."""
    import torch

    from pipelines.layers.fp8 import fp8_unsupported

    reason = fp8_unsupported(model.device)
    for name, module in model.named_modules() if model.device.type == "cuda" else ():
        # torch._scaled_mm requires multiples of 16; a CPU emulates float8 at any width.
        if type(module) is torch.nn.Linear and (
            module.in_features % 16 or module.out_features % 16
        ):
            widths = f"{module.in_features} to {module.out_features}"
            reason = f"{name} maps {widths} values, not multiples of 16"
    if reason:
        raise UserError(f"model.quantization=fp8: {reason}: set model.quantization=none or nf4")
