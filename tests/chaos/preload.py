"""Imports that every forked worker needs, made once in the fork server: a restart takes seconds."""

import os

os.environ["DS_ACCELERATOR"] = "cpu"

import deepspeed  # noqa: F401
import peft  # noqa: F401
import transformers.models.llama.modeling_llama  # noqa: F401

import pipelines.train.worker  # noqa: F401
