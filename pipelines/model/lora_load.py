"""Load saved adapters onto a base for inference, and choose the active adapter."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.adapter_format.peft_files import (
    format_errors_as_user_errors,
    read_config,
    read_tensors,
)
from pipelines.core.errors import UserError, one_line

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def add_adapter(model: PreTrainedModel | PeftModel, name: str, folder: Path) -> PeftModel:
    """Load a saved adapter under `name` and return the PEFT model.

    The first adapter wraps the base in a PEFT model; later ones are added to it. Raises UserError
    when the adapter does not fit the base, or when a file is missing, damaged or not LoRA.
    """
    import peft

    with format_errors_as_user_errors():
        read_config(folder)
        tensors = read_tensors(folder)
    try:
        config = peft.PeftConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{folder}: PEFT cannot read the configuration: {one_line(error)}"
        ) from error
    config.inference_mode = True
    if isinstance(model, peft.PeftModel):
        adapted = model
        adapted.add_adapter(name, config)
    else:
        adapted = peft.PeftModel(model, config, adapter_name=name, autocast_adapter_dtype=False)
    expected = peft.get_peft_model_state_dict(adapted, adapter_name=name)
    differing = expected.keys() ^ tensors.keys()
    differing |= {
        key for key in expected.keys() & tensors.keys() if expected[key].shape != tensors[key].shape
    }
    if differing:
        # Leave the model as it was: other adapters on it stay in use.
        adapted.delete_adapter(name) if adapted is model else adapted.unload()
        raise UserError(
            f"{folder}: the adapter does not fit the base: {len(differing)} tensors differ, first "
            f"{min(differing)}"
        )
    peft.set_peft_model_state_dict(adapted, tensors, adapter_name=name)
    adapted.requires_grad_(False)
    return adapted.eval()


@contextmanager
def use_adapter(model: PreTrainedModel | PeftModel, name: str | None) -> Iterator[None]:
    """Inside, every row runs with the adapter `name`; None is the plain base.

    DoRA and `modules_to_save` are switched too. Raises ValueError for a name where the model has no
    adapters.
    """
    import peft

    if not isinstance(model, peft.PeftModel):
        if name:
            raise ValueError(f"the base has no adapters, asked for {name}")
        yield
    elif name is None:
        with model.disable_adapter():
            yield
    else:
        model.set_adapter(name)
        model.requires_grad_(False)  # set_adapter makes the adapter trainable
        yield
