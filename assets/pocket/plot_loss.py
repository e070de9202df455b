"""Draw the pocket model's pretraining loss, model/train_log.jsonl, as loss.png (or as SVG)."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from pipelines.report.charts import Level, LineChart, Series, save_line_chart

HERE = Path(__file__).parent


def main() -> None:
    """Read the log and write the picture."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--log", type=Path, default=HERE / "model" / "train_log.jsonl")
    parser.add_argument("--out", type=Path, default=HERE / "loss.png")
    args = parser.parse_args()
    summary, *log = [json.loads(line) for line in args.log.read_text(encoding="utf-8").splitlines()]
    chart = LineChart(
        "Pretraining loss of the pocket model",
        "tokens seen (millions)",
        "loss (nats per token)",
        [Series("training", [(entry["tokens"] / 1e6, entry["loss"]) for entry in log])],
        [Level("unseen text, after training", summary["validation_loss_bf16"])],
        log_y=True,
    )
    save_line_chart(chart, args.out)


if __name__ == "__main__":
    main()
