"""What every forked worker needs, imported once in the fork server, so that a restart costs seconds and not a minute."""

import os

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed  # noqa: F401
import peft  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401

import pipelines.train.worker  # noqa: F401
