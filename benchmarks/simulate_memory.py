"""Peak memory of a GPU under the paper's algorithms (its figure 6), simulated from the 7B recipes; no GPU needed.

    python benchmarks/simulate_memory.py [--devices 4] [--out docs/images/simulated_memory.png]

Prints the table of docs/results.md and draws the figure.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sppo_lit.cli.doctor import plan_of
from sppo_lit.cli.main import translate
from sppo_lit.cli.recipe_cli import settings_of
from sppo_lit.doctor import memory
from sppo_lit.doctor.memory import needs
from sppo_lit.doctor.report import GIB
from sppo_lit.doctor.simulation import Shape
from sppo_lit.study.figures.drawing import saved_figure

FOLDER = Path(__file__).resolve().parents[1] / "recipes" / "dapo17k_7b"
TITLES = {
    "ppo": "PPO",
    "sppo": "Sequence-Level PPO",
    "sppo_small_critic": "the same, 1.5B critic",
    "rloo": "RLOO",
    "remax": "ReMax",
    "grpo": "GRPO",
}
PARTS = {
    "weights": ("weights of policy and critic", "weights of the reference policy", "copy of the policy for decoding"),
    "AdamW's moments": ("two AdamW moments of each",),
    "keys and values": ("keys and values of the longest sequences",),
    "gradients": ("gradients of one network at a time",),
}
REST = "passes"


def once(function: Callable[[Shape], Any]) -> Callable[[Shape], Any]:
    """Most recipes share their networks: each is simulated once."""
    found: dict[str, Any] = {}

    def remembered(shape: Shape) -> Any:
        key = repr(shape)
        found[key] = found[key] if key in found else function(shape)
        return found[key]

    return remembered


def main() -> None:
    memory.update_bytes, memory.sampling_bytes = once(memory.update_bytes), once(memory.sampling_bytes)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=int, default=4)
    parser.add_argument("--memory", type=float, default=80.0, help="GiB of each GPU")
    parser.add_argument("--out", type=Path, default=Path("docs/images/simulated_memory.png"))
    args = parser.parse_args()
    bars: dict[str, dict[str, dict[str, float]]] = {"sampling": {}, "updating": {}}
    for name in TITLES:
        flags = ["--strategy", "fsdp", "--devices", str(args.devices)]
        settings = settings_of(translate(["fit", str(FOLDER / f"{name}.yaml"), *flags]))
        rows = needs(plan_of(settings, args.devices, int(args.memory * GIB)))
        for phase, found in bars.items():
            found[name] = {
                part: sum(getattr(r, phase) for r in rows if r.what in names) / GIB for part, names in PARTS.items()
            }
            found[name][REST] = sum(getattr(r, phase) for r in rows) / GIB - sum(found[name].values())
    print("| algorithm | sampling (GiB) | updating (GiB) | of which passes, simulated |\n|---|---|---|---|")
    for name, title in TITLES.items():
        sampling, updating = (sum(bars[phase][name].values()) for phase in ("sampling", "updating"))
        print(f"| {title} | {sampling:.1f} | {updating:.1f} | {bars['updating'][name][REST]:.1f} |")
    with saved_figure(args.out, 9.0, 3.4) as figure:
        axes = figure.subplots(1, 2, sharey=True)
        for axis, (phase, found) in zip(axes, bars.items(), strict=True):
            left = [0.0] * len(TITLES)
            for part in (*PARTS, REST):
                sizes = [found[name][part] for name in TITLES]
                axis.barh(list(TITLES.values()), sizes, left=left, height=0.7, label=part)
                left = [a + b for a, b in zip(left, sizes, strict=True)]
            axis.axvline(args.memory, color="0.4", linestyle=":", linewidth=1)
            axis.set_xlim(0, args.memory * 1.05)
            axis.set_xlabel(f"GiB of a GPU while {phase}")
            axis.grid(visible=False, axis="y")
        axes[0].invert_yaxis()
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=5)


if __name__ == "__main__":
    main()
