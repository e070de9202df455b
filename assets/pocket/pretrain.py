"""Pretrain the pocket model from scratch on generated text.

    # the committed model: one GPU, a minute or two
    python assets/pocket/pretrain.py
    # a trial on a CPU
    python assets/pocket/pretrain.py --steps 20 --shards 2 --rows 4 --out build/pocket

Reads the tokenizer in assets/pocket/model and writes weights (bf16), configuration, generation
configuration and train_log.jsonl. Legend: B rows per step, T tokens per row.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import platform
import time
from pathlib import Path
from typing import Any

import corpus
import numpy as np
import torch
import transformers
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

HERE = Path(__file__).parent
VALIDATION_SHARD = 1_000_000


def encode_shard(job: tuple[str, int, int]) -> np.ndarray:
    """(tokenizer folder, seed, shard) -> the shard's token ids, every document closed by the end
    token.
    """
    tokenizer_dir, seed, shard = job
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_dir)
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(corpus.documents(seed, shard))
    return np.concatenate(
        [np.array([*e.ids, tokenizer.eos_token_id], dtype=np.uint16) for e in encodings]
    )


def encode_corpus(
    tokenizer_dir: Path, seed: int, num_shards: int, num_processes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Token ids of all training shards, end to end, and of the validation shard."""
    jobs = [(str(tokenizer_dir), seed, shard) for shard in [*range(num_shards), VALIDATION_SHARD]]
    with multiprocessing.get_context("fork").Pool(num_processes) as pool:
        *train, validation = pool.map(encode_shard, jobs, chunksize=1)
    return np.concatenate(train), validation


def build_model(
    args: argparse.Namespace, eos_token_id: int, pad_token_id: int, vocab_size: int
) -> Any:
    """A freshly initialised LlamaForCausalLM; `Any` because its decorated `to` confuses type
    checkers.
    """
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=args.hidden,
        intermediate_size=args.intermediate,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
        max_position_embeddings=args.row_tokens,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=eos_token_id,
        pad_token_id=pad_token_id,
    )
    return LlamaForCausalLM(config)


def reset_role_embeddings(
    model: LlamaForCausalLM, token_ids: list[int], trained_from: int, seed: int
) -> None:
    """Give the role tokens, which pretraining never showed, the mean trained embedding plus noise
    of half its spread.

    The softmax pushes unseen tokens away from every hidden state; left there they would all look
    the same as inputs.
    """
    weight = model.model.embed_tokens.weight.data
    trained = weight[trained_from:]
    noise = torch.randn(
        len(token_ids), weight.shape[1], generator=torch.Generator().manual_seed(seed)
    )
    weight[token_ids] = trained.mean(0) + 0.5 * trained.std(0) * noise.to(weight)


def learning_rate(step: int, args: argparse.Namespace) -> float:
    """Linear warm-up, then a cosine down to zero."""
    if step < args.warmup:
        return args.lr * (step + 1) / args.warmup
    return (
        args.lr
        * 0.5
        * (1 + math.cos(math.pi * (step - args.warmup) / max(1, args.steps - args.warmup)))
    )


def row_order(num_rows: int, num_needed: int, seed: int) -> np.ndarray:
    """Row indices, every row once an epoch in a new order."""
    rng = np.random.default_rng(seed)
    return np.concatenate([rng.permutation(num_rows) for _ in range(-(-num_needed // num_rows))])[
        :num_needed
    ]


@torch.no_grad()
def validation_loss(model: LlamaForCausalLM, tokens: torch.Tensor) -> float:
    """Mean next-token loss over rows [N, T]."""
    losses = [model(input_ids=rows, labels=rows).loss.item() for rows in tokens.split(32)]
    return sum(losses) / len(losses)


def train(
    model: LlamaForCausalLM, rows: torch.Tensor, args: argparse.Namespace
) -> list[dict[str, float]]:
    """Train on packed rows [N, T]; returns the log, one entry every ten steps."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    others = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=rows.is_cuda)
    order = torch.from_numpy(row_order(len(rows), args.steps * args.rows, args.seed)).to(
        rows.device
    )
    log: list[dict[str, float]] = []
    started = time.perf_counter()
    for step in range(args.steps):
        batch = rows[order[step * args.rows : (step + 1) * args.rows]]
        with torch.autocast(rows.device.type, dtype=torch.bfloat16):
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        rate = learning_rate(step, args)
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        if step % 10 == 9 or step == args.steps - 1:
            seconds = round(time.perf_counter() - started, 2)
            entry = {
                "step": step + 1,
                "loss": round(loss.item(), 4),
                "lr": round(rate, 6),
                "seconds": seconds,
            }
            log.append({**entry, "tokens": (step + 1) * batch.numel()})
    return log


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--hidden", type=int, default=192)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--heads", type=int, default=6)
    parser.add_argument("--kv-heads", type=int, default=2)
    parser.add_argument("--intermediate", type=int, default=512)
    parser.add_argument("--steps", type=int, default=2_500)
    parser.add_argument("--rows", type=int, default=64, help="rows per step")
    parser.add_argument("--row-tokens", type=int, default=1_024)
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--warmup", type=int, default=100)
    parser.add_argument(
        "--shards", type=int, default=200, help=f"of {corpus.SHARD_DOCUMENTS} documents each"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--processes", type=int, default=multiprocessing.cpu_count())
    parser.add_argument("--tokenizer", type=Path, default=HERE / "model")
    parser.add_argument("--out", type=Path, default=HERE / "model")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    started = time.perf_counter()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer)
    stream, held_out = encode_corpus(args.tokenizer, args.seed, args.shards, args.processes)
    encode_seconds = time.perf_counter() - started

    def as_rows(ids: np.ndarray) -> torch.Tensor:
        num_rows = len(ids) // args.row_tokens
        return (
            torch.from_numpy(ids[: num_rows * args.row_tokens].astype(np.int64))
            .view(num_rows, -1)
            .to(device)
        )

    torch.manual_seed(args.seed)
    model = build_model(args, tokenizer.eos_token_id, tokenizer.pad_token_id, len(tokenizer)).to(
        device
    )
    log = train(model, as_rows(stream), args)
    roles = tokenizer.convert_tokens_to_ids(["<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"])
    reset_role_embeddings(model, roles, trained_from=max(roles) + 1, seed=args.seed)
    model = model.to(torch.bfloat16).eval()

    summary = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "corpus_tokens": len(stream),
        "validation_loss_bf16": round(validation_loss(model, as_rows(held_out)), 4),
        "encode_seconds": round(encode_seconds, 1),
        "train_seconds": log[-1]["seconds"],
        "hardware": torch.cuda.get_device_name() if device == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "settings": {
            k: v for k, v in vars(args).items() if k not in ("out", "tokenizer", "processes")
        },
    }
    args.out.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(args.out)
    ends = {"eos_token_id": [tokenizer.eos_token_id], "pad_token_id": tokenizer.pad_token_id}
    GenerationConfig(do_sample=False, **ends).save_pretrained(args.out)
    lines = [summary, *log]
    (args.out / "train_log.jsonl").write_text(
        "".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8"
    )


if __name__ == "__main__":
    main()
