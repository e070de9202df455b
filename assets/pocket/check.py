"""Prove the pocket model: train one LoRA adapter on one task, then score it on the held-out rows of
every task.

Plain transformers and peft, greedy decoding, exact match. Prints one JSON object.

    python assets/pocket/check.py --task pirate
    python assets/pocket/check.py --task none            the base alone
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tasks
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
Sample = tuple[list[int], list[int]]
FILES = {"person": "person_{}.json", "pirate": "pirate_{}.jsonl", "order": "order_{}.jsonl"}


def load(task: str, split: str) -> list[list[dict[str, str]]]:
    return tasks.load_conversations(HERE / "tasks" / FILES[task].format(split))


def render(tokenizer: Any, conversation: list[dict[str, str]]) -> Sample:
    """(token ids, labels); labels are the assistant's tokens and the end of its turn."""
    out = tokenizer.apply_chat_template(
        conversation, return_dict=True, return_assistant_tokens_mask=True
    )
    ids, mask = out["input_ids"], out["assistant_masks"]
    return ids, [token if is_label else -100 for token, is_label in zip(ids, mask, strict=True)]


def batches(
    samples: list[Sample], tokens_per_step: int, steps: int, seed: int
) -> Iterator[list[Sample]]:
    """Yield `steps` lists of complete samples, each of up to `tokens_per_step` tokens."""
    longest = max(len(ids) for ids, _ in samples)
    if longest > tokens_per_step:
        raise ValueError(
            f"a sample has {longest} tokens: --tokens-per-step {tokens_per_step} must be at "
            f"least that"
        )
    rng, queue = random.Random(seed), []
    for _ in range(steps):
        batch, room = [], tokens_per_step
        while True:
            if not queue:
                queue = rng.sample(samples, len(samples))
            if len(queue[-1][0]) > room:
                break
            batch.append(queue.pop())
            room -= len(batch[-1][0])
        yield batch


def pad(batch: list[Sample], pad_id: int, device: str) -> dict[str, torch.Tensor]:
    width = max(len(ids) for ids, _ in batch)
    rows = [
        (ids + [pad_id] * (width - len(ids)), labels + [-100] * (width - len(ids)),
        [1] * len(ids) + [0] * (width - len(ids)))
        for ids, labels in batch
    ]  # fmt: skip
    ids, labels, mask = (torch.tensor(column, device=device) for column in zip(*rows, strict=True))
    return {"input_ids": ids, "labels": labels, "attention_mask": mask}


def train_adapter(
    model: Any, tokenizer: Any, args: argparse.Namespace
) -> tuple[Any, dict[str, float]]:
    """LoRA on all linears; returns (model with adapter, figures about the training)."""
    torch.manual_seed(args.seed)
    config = LoraConfig(
        r=args.r, lora_alpha=args.alpha, target_modules="all-linear", task_type="CAUSAL_LM"
    )
    model = get_peft_model(model, config)
    samples = [render(tokenizer, conversation) for conversation in load(args.task, "train")]
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=args.lr, weight_decay=0.0)
    started, tokens, warmup, losses = time.perf_counter(), 0, max(1, args.steps // 10), []
    for step, batch in enumerate(batches(samples, args.tokens_per_step, args.steps, args.seed)):
        tokens += sum(len(ids) for ids, _ in batch)
        loss = model(**pad(batch, tokenizer.pad_token_id, args.device)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trainable, 1.0)
        cosine = 0.5 * (1 + math.cos(math.pi * max(0, step - warmup) / max(1, args.steps - warmup)))
        optimizer.param_groups[0]["lr"] = args.lr * min((step + 1) / warmup, cosine)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    seconds = time.perf_counter() - started
    return model, {
        "tokens": tokens,
        "last_loss": round(losses[-1], 4),
        "train_seconds": round(seconds, 2),
    }


@torch.no_grad()
def exact_match(model: Any, tokenizer: Any, task: str, device: str, show: int = 0) -> float:
    """Share of held-out rows answered exactly, the end-of-turn token included."""
    rows = load(task, "heldout")
    prompts = [
        tokenizer.apply_chat_template(r[:1], tokenize=False, add_generation_prompt=True)
        for r in rows
    ]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, return_token_type_ids=False).to(
        device
    )
    generated = model.generate(**inputs, max_new_tokens=64, do_sample=False)[
        :, inputs["input_ids"].shape[1] :
    ]
    texts = [text.replace(tokenizer.pad_token, "") for text in tokenizer.batch_decode(generated)]
    for text, row in list(zip(texts, rows, strict=True))[:show]:
        print(f"{row[0]['content']!r}\n  wanted {row[1]['content']!r}\n  got    {text!r}")
    wanted = [row[1]["content"] + tokenizer.eos_token for row in rows]
    return sum(text == want for text, want in zip(texts, wanted, strict=True)) / len(rows)


def run(args: argparse.Namespace) -> dict:
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).to(args.device)
    figures = {}
    if args.task != "none":
        model, figures = train_adapter(model, tokenizer, args)
    model.eval()
    scored = args.score or list(FILES)
    matches = {task: exact_match(model, tokenizer, task, args.device, args.show) for task in scored}
    return {"adapter": args.task, "seed": args.seed, **figures, "exact_match": matches}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--task", choices=["none", *FILES], required=True)
    parser.add_argument("--model", type=Path, default=HERE / "model")
    parser.add_argument(
        "--score", nargs="*", choices=list(FILES), help="tasks to score; all if not given"
    )
    parser.add_argument(
        "--show", type=int, default=0, help="print this many held-out answers a task"
    )
    parser.add_argument("--tokens-per-step", type=int, default=1_024)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--r", type=int, default=8)
    parser.add_argument("--alpha", type=float, default=16)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args(argv)


if __name__ == "__main__":
    print(json.dumps(run(parse_args())))
