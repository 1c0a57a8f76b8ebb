"""Model cards of exported models: what they are, what they were made from, what they can do, who to cite."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from sppo_lit.training.metrics import MEASURES, Result
from sppo_lit.utils.paths import shipped_root

CITATION = """@inproceedings{wang2026sppo,
  title         = {SPPO: Sequence-Level PPO for Long-Horizon Reasoning Tasks},
  author        = {Wang, Tianyi and Li, Yixia and Li, Long and Chen, Yibiao and Huang, Shaohan and Chen, Yun and
                   Li, Peng and Liu, Yang and Chen, Guanhua},
  booktitle     = {Annual Meeting of the Association for Computational Linguistics (ACL)},
  year          = {2026},
  eprint        = {2604.08865},
  archivePrefix = {arXiv},
}"""

ABOUT = {
    "AutoModelForCausalLM": "a language model trained to solve problems whose answers can be checked",
    "AutoModelForSequenceClassification": "the critic of that training: sigmoid(logit) at the last prompt token is "
    "the policy's probability of solving the prompt",
    "AutoModelForTokenClassification": "the critic of that training: its output at a token is the value of prompt "
    "and response up to that token (a logit if the algorithm of the recipe is ppo_bce)",
}


@dataclass(frozen=True)
class Origin:
    """What an exported model was made from.

    Attributes:
        model: Hub id or path of the model that the training started from; None for random weights.
        model_on_hub: whether that is a Hub id.
        train: name or Hub id of the training problems; None if not known.
        datasets: Hub ids among the training problems.
        held_out: Hub ids of held-out sets, by their name in the results.
        licence: licence of the exported model as an identifier of the Hub, e.g. ``apache-2.0``.
    """

    model: str | None = None
    model_on_hub: bool = False
    train: str | None = None
    datasets: tuple[str, ...] = ()
    held_out: Mapping[str, str] = field(default_factory=dict)
    licence: str | None = None


def auto_class(model_class: str) -> str:
    """The Auto class of transformers that loads a policy or critic of this class."""
    suffixes = {"ForSequenceClassification": "SequenceClassification", "ForTokenClassification": "TokenClassification"}
    kind = next((kind for end, kind in suffixes.items() if model_class.endswith(end)), "CausalLM")
    return f"AutoModelFor{kind}"


def model_card(
    part: str,
    model_class: str,
    run: Path,
    iteration: int,
    origin: Origin,
    first: Mapping[str, Result],
    last: Mapping[str, Result],
) -> str:
    """README of an exported model: metadata of the Hub, description, usage, results, recipe and citation.

    Args:
        part: ``policy`` or ``critic``.
        model_class: transformers class of the model.
        run: run folder, whose ``config.yaml`` (if present) is the recipe.
        iteration: iterations completed.
        origin: what it was made from.
        first: held-out metrics of the policy before training by set; empty if not evaluated.
        last: those after training.
    """
    auto = auto_class(model_class)
    start = f"the weights of `{public(origin.model)}`" if origin.model else "random weights"
    problems = f", on the problems `{public(origin.train)}`" if origin.train else ""
    lines = [
        "---",
        metadata(part, origin, last),
        "---",
        "",
        f"# {part.capitalize()} after {iteration} iterations of training",
        "",
        f"A `{model_class}`: {ABOUT[auto]}. Made with sppo-lit from {start}{problems}.",
        "",
        "```python",
        f"from transformers import {auto}, AutoTokenizer",
        "",
        f'model = {auto}.from_pretrained("{part}")  # this folder',
        f'tokenizer = AutoTokenizer.from_pretrained("{part}")',
        "```",
        "",
    ]
    if table := results(first, last):
        lines += ["## Held-out results of the policy", "", "Percent, with 95 % intervals.", "", *table, ""]
    recipe = run / "config.yaml"
    if recipe.is_file():
        text = without_places(recipe.read_text(encoding="utf-8").strip())
        fence = "`" * (4 if "```" in text else 3)
        lines += ["## Recipe", "", f"{fence}yaml", text, fence, ""]
    lines += ["## Citation", "", "```bibtex", CITATION, "```", ""]
    return "\n".join(lines)


def public(path: str) -> str:
    """A path without the folders of this machine: below the shipped files or the current folder, else its last part."""
    if not Path(path).is_absolute() or len(Path(path).parts) < 3:
        return path
    roots = [root for root in (shipped_root(), Path.cwd()) if Path(path).is_relative_to(root) and path != str(root)]
    return str(Path(path).relative_to(roots[0])) if roots else Path(path).name


def without_places(recipe: str) -> str:
    """A recipe with its absolute paths as `public` writes them; as it stands where it names none."""
    try:
        content = yaml.safe_load(recipe)
    except yaml.YAMLError:
        return recipe
    shown = _public(content)
    return recipe if shown == content else yaml.safe_dump(shown, sort_keys=False, allow_unicode=True).strip()


def _public(content: Any) -> Any:
    """The content of a recipe with every text in it, keys as well, as `public` writes it."""
    if isinstance(content, dict):
        return {_public(key): _public(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_public(part) for part in content]
    return public(content) if isinstance(content, str) else content


def metadata(part: str, origin: Origin, last: Mapping[str, Result]) -> str:
    """The YAML at the head of a card, as the Hub reads it; results only in the policy's."""
    from huggingface_hub import EvalResult, ModelCardData

    scores = [
        EvalResult(
            task_type="text-generation",
            dataset_type=origin.held_out.get(name, name),
            dataset_name=name,
            metric_type="accuracy",
            metric_name=label.format(k=int(result["k"])),
            metric_value=round(100 * result[key], 2),
        )
        for name, result in last.items()
        for key, label in MEASURES.items()
        if key in result and part == "policy"
    ]
    data = ModelCardData(
        base_model=origin.model if origin.model_on_hub else None,
        datasets=list(origin.datasets) or None,
        library_name="transformers",
        license=origin.licence,
        metrics=["accuracy"] if scores else None,
        pipeline_tag="text-generation" if part == "policy" else "text-classification",
        tags=["reinforcement-learning", "reasoning", "sequence-level-ppo", "sppo-lit", "arxiv:2604.08865"],
        model_name=part if scores else None,
        eval_results=scores or None,
    )
    return str(data.to_yaml()).strip()


def results(first: Mapping[str, Result], last: Mapping[str, Result]) -> Sequence[str]:
    """The held-out metrics before and after training as a Markdown table; empty without an evaluation."""
    if not last:
        return []
    lines = ["| set | problems | measure | before training | after training |", "|---|---:|---|---:|---:|"]
    for name, result in last.items():
        before = first.get(name, {})
        for key, label in MEASURES.items():
            if key in result:
                measure = label.format(k=int(result["k"]))
                cells = [name, f"{result['problems']:.0f}", measure, cell(before, key), cell(result, key)]
                lines.append(f"| {' | '.join(cells)} |")
    return lines


def cell(result: Result, key: str) -> str:
    """A metric in percent with its 95 % interval; – if missing."""
    if key not in result:
        return "–"
    interval = f" ± {100 * result[f'{key}_ci']:.1f}" if f"{key}_ci" in result else ""
    return f"{100 * result[key]:.1f}{interval}"
