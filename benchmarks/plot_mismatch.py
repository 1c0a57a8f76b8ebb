"""Figure of the study of the correction: held-out accuracy over iterations, mean and range over seeds.

    python benchmarks/plot_mismatch.py OUT.png NAME=RUN_FOLDER,RUN_FOLDER,… [NAME=…]

A run folder is one of `lightning run` (its metrics.csv is read). Names that share their part before the colon share a
panel.
"""

from __future__ import annotations

import csv
import statistics
import sys
from pathlib import Path

STYLES = {"exact": ("#444444", "-"), "off": ("#c1440e", "--"), "on": ("#1f6f8b", "-")}


def accuracies(folder: Path) -> dict[int, float]:
    """Held-out accuracy by iteration, in percent."""
    with (folder / "metrics.csv").open(newline="") as file:
        return {
            int(float(r["step"])): 100 * float(r["val/accuracy"]) for r in csv.DictReader(file) if r["val/accuracy"]
        }


def main() -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    out, *cells = sys.argv[1:]
    panels: dict[str, dict[str, list[dict[int, float]]]] = {}
    for cell in cells:
        name, folders = cell.split("=", 1)
        panel, _, line = name.partition(":")
        panels.setdefault(panel, {})[line] = [accuracies(Path(folder)) for folder in folders.split(",")]
    figure, axes = plt.subplots(1, len(panels), figsize=(4.4 * len(panels), 3.4), sharey=True, squeeze=False)
    for axis, (panel, lines) in zip(axes[0], panels.items(), strict=True):
        for line, runs in lines.items():
            color, dash = STYLES[line.split()[-1]]
            steps = sorted(set.intersection(*(set(run) for run in runs)))
            means = [statistics.mean(run[s] for run in runs) for s in steps]
            axis.plot(steps, means, dash, color=color, marker="o", markersize=4, label=line)
            low, high = ([f(run[s] for run in runs) for s in steps] for f in (min, max))
            axis.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
            for step, mean in zip(steps, means, strict=True):
                print(f"{panel}, {line}, iteration {step}: {mean:.1f} %", [round(run[step], 1) for run in runs])
        axis.set(title=panel, xlabel="iteration")
        axis.legend(frameon=False, fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][0].set_ylabel("held-out accuracy, %")
    figure.tight_layout()
    figure.savefig(out, dpi=130)


if __name__ == "__main__":
    main()
