"""Section on training: every logged metric as a small curve with its spread."""

from __future__ import annotations

import re

from safe_o2o.report import figures
from safe_o2o.report.blocks import Command, Figure, Figures, Missing, Section
from safe_o2o.report.figures import Line, compact
from safe_o2o.report.run_files import Metrics, across_seeds, rolling

# Metric prefix -> heading and colour. The first group that fits wins; the order is the page's.
_GROUPS = (
    (r"model/|world_model/", "World model", "policy"),
    (r"critic/|value/", "Critics and values", "success"),
    (r"reach|ref/", "Reachability estimate (REF)", "violation"),
    (r"actor/|policy/|expansion/", "Policy", "finetuned"),
    (r"lagrange|dual", "Constraint multiplier", "mixture"),
)
_REST = ("Everything else", "random")


# What a key's last part means, where the word alone would not say it.
_TITLES = {
    "model/loss": "total loss",
    "model/kl": "KL loss, balanced",
    "model/image": "image reconstruction loss",
    "model/reward": "reward prediction loss",
    "model/cost": "cost prediction loss",
    "model/cont": "continuation loss",
    "model/vector": "tool position loss",
    "model/plain_kl": "KL, posterior to prior",
    "reach/loss": "loss",
    "reach/p": "mean predicted probability",
    "critic/reward": "mean Q of reward",
    "critic/cost": "mean Q of cost",
    "critic/reward_loss": "Q of reward, loss",
    "critic/cost_loss": "Q of cost, loss",
    "value/reward_loss": "V of reward, expectile loss",
    "value/cost_loss": "V of cost, expectile loss",
    "actor/loss": "loss",
    "actor/cost": "expected cost",
    "actor/weight_max": "largest sample weight",
    "actor/weighted_error": "weighted squared error",
    "actor/base_distance": "distance to the frozen policy",
    "lagrange/multiplier": "Lagrange multiplier",
    "lagrange/penalty": "quadratic penalty",
}


def training(
    metrics: Metrics | None, command: str, *, slug: str = "train", title: str = "Offline training"
) -> Section:
    """Section 2: every logged metric with spread."""
    section = Section(slug, title, "")
    if metrics is None:
        section.blocks.append(Missing("No training log yet.", command))
        return section
    seeds = len(metrics.runs)
    spread = (
        f"Line: median of {seeds} runs' rolling medians; band: their range."
        if seeds > 1
        else "Line: rolling median over 5 % of the log; band: its 10 to 90 % quantiles."
    )
    section.lead = (
        f"{spread} Losses and probabilities have no unit. The number at each line's end is its "
        "last value."
    )
    if metrics.dropped:
        section.lead += f" {metrics.dropped} logged values were not finite and are left out."
    keys = sorted({key for run in metrics.runs for key in run})
    grouped: dict[str, list[Figure]] = {}
    for key in keys:
        found = (g for g in _GROUPS if re.match(g[0], key))
        _, heading, role = next(found, ("", *_REST))
        runs = [run[key] for run in metrics.runs if key in run and len(run[key][0])]
        series = across_seeds(runs) if len(runs) > 1 else rolling(*runs[0])
        line = Line("", *series)
        name = f"{slug}-{re.sub(r'[^a-z0-9]+', '-', key.lower())}"
        said = f"{key} over updates, from {compact(line.median[0])} to {compact(line.median[-1])}"
        grouped.setdefault(heading, []).append(
            Figure(figures.curve(name, _title(key), line, said, role=role), "")
        )
    for heading in [*(g[1] for g in _GROUPS), _REST[0]]:
        if heading in grouped:
            folded = heading == _REST[0] or slug != "train"
            section.blocks.append(Figures(grouped[heading], heading, dense=True, folded=folded))
    section.blocks.append(Command(command))
    return section


def _title(key: str) -> str:
    if key in _TITLES:
        return _TITLES[key]
    group, _, name = key.rpartition("/")
    text = name.replace("_", " ")
    return f"{group}: {text}" if group in ("critic", "value", "grad") else text
