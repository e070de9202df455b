"""Draw the pocket model's pretraining loss, model/train_log.jsonl, as loss.png. Needs matplotlib."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

HERE = Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, default=HERE / "model" / "train_log.jsonl")
    parser.add_argument("--out", type=Path, default=HERE / "loss.png")
    args = parser.parse_args()
    matplotlib.use("Agg")
    from matplotlib import pyplot  # after the backend is chosen

    summary, *log = [json.loads(line) for line in args.log.read_text(encoding="utf-8").splitlines()]
    figure, axes = pyplot.subplots(figsize=(6, 3.2))
    axes.plot(
        [entry["tokens"] / 1e6 for entry in log], [entry["loss"] for entry in log], label="training"
    )
    axes.axhline(
        summary["validation_loss_bf16"],
        color="gray",
        linestyle="--",
        label="unseen text, after training",
    )
    axes.set(xlabel="million tokens", ylabel="loss (nats a token)", yscale="log")
    axes.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(args.out, dpi=110)


if __name__ == "__main__":
    main()
