"""The pocket model's tokenizer: byte-level BPE with single digits, and its chat template.

Turns of the system, the user and a tool are opened by a role token and closed by the next one; only
the assistant's turn is closed by `<|end|>`, which also ends every pretraining document. So the one
token that a LoRA must learn to emit at the end of a turn is a token that the frozen base already
knows how to emit.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import corpus
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 1_024
PAD, END = "<|pad|>", "<|end|>"
ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
SPECIAL_TOKENS = (PAD, END, *ROLES)

# A word with its leading space and apostrophe, one digit, a run of punctuation such as `", "`, or
# white space.
SPLIT = (
    r" ?\p{L}+(?:'\p{L}*)?|\p{N}"
    r"|\n?[^\s\p{L}\p{N}]+(?: [^\s\p{L}\p{N}]+)*(?: (?=\p{N}))?|\s+"
)

CHAT_TEMPLATE = """\
{%- for message in messages -%}
{%- if message['role'] == 'assistant' -%}
{{- '<|assistant|>' -}}
{%- generation -%}
{{- message['content'] + '<|end|>' -}}
{%- endgeneration -%}
{%- elif message['role'] in ['system', 'user', 'tool'] -%}
{{- '<|' + message['role'] + '|>' + message['content'] -}}
{%- else -%}
{{- raise_exception('unknown role ' + message['role'] + \
'; valid: system, user, assistant, tool') -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|assistant|>' -}}
{%- endif -%}
"""


def train(seed: int, num_documents: int) -> PreTrainedTokenizerFast:
    """Train on shard -1 of the corpus, which is not part of the pretraining text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])  # fmt: skip
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus.documents(seed, shard=-1, count=num_documents), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        pad_token=PAD,
        eos_token=END,
        additional_special_tokens=list(ROLES),
        chat_template=CHAT_TEMPLATE,
        model_max_length=1_024,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Train the tokenizer and save it beside the model."
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--documents", type=int, default=60_000)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "model")
    args = parser.parse_args()
    train(args.seed, args.documents).save_pretrained(args.out)


if __name__ == "__main__":
    main()
