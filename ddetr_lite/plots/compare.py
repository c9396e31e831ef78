"""Several runs beside each other: a table for the terminal, and their curves in one figure."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from ddetr_lite.engine.recipes import with_defaults
from ddetr_lite.engine.run_results import RunResults, read_run
from ddetr_lite.plots.run_curves import METRIC_NAMES, score
from ddetr_lite.plots.style import COLOURS, STYLE, panels, plain
from ddetr_lite.plots.training import smooth

NONE = "–"  # where a run does not say it


def read_runs(paths: Sequence[str | Path]) -> dict[str, RunResults]:
    """Runs by name: the folder's, with as much of the path before it as tells them apart.

    Raises ValueError where one is no run, or is named twice.
    """
    runs = [read_run(path) for path in paths]
    places = [run.log.resolve().parent for run in runs]
    twice = next((run for i, run in enumerate(runs) if places[i] in places[:i]), None)
    if twice is not None:
        raise ValueError(f"{twice.folder} is named twice: give each run once")
    depth = 1
    while len({place.parts[-depth:] for place in places}) < len(places):
        depth += 1
    return {"/".join(place.parts[-depth:]): run for place, run in zip(places, runs, strict=True)}


def comparison(runs: Mapping[str, RunResults]) -> list[list[str]]:
    """Rows of cells, the first one with the runs' names: what came out, what it took, and where the recipes differ."""
    rows = [["", *runs]]
    for which, name in (("best", "AP, best"), ("last", "AP, last")):
        for metric, short in METRIC_NAMES.items():
            label = name if metric == "AP" else f"  {short}"
            rows.append([label, *(score(getattr(run, which), metric) for run in runs.values())])
    rows.append(["best at epoch", *(_number((run.best or {}).get("epoch")) for run in runs.values())])
    rows.append(["epochs", *(f"{run.steps / run.steps_per_epoch:.3g}" for run in runs.values())])
    rows.append(["steps", *(str(run.steps) for run in runs.values())])
    rows.append(["parameters", *(_number(run.start.get("parameters"), 1e6, "{:.2f}M") for run in runs.values())])
    rows.append(["pictures/s", *(_number(run.speed) for run in runs.values())])
    rows.append(["minutes", *(_number(run.seconds, 60) for run in runs.values())])
    rows.append(["device", *(str(run.start.get("device", NONE)) for run in runs.values())])
    rows.append(["model row", *(run.row for run in runs.values())])
    return rows + differing([with_defaults(run.recipe) for run in runs.values()])


def differing(recipes: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """Rows (name of the field, its value in each recipe) for the fields that are not the same in all, such as `train.lr`."""
    flat = [_flatten(recipe) for recipe in recipes]
    names = list(dict.fromkeys(name for values in flat for name in values))
    parts = list(dict.fromkeys(name.split(".")[0] for name in names))
    names.sort(key=lambda name: parts.index(name.split(".")[0]))  # what one recipe alone has stands with its part
    rows = []
    for name in names:
        values = [_value(values[name]) if name in values else NONE for values in flat]
        if len(set(values)) > 1:
            rows.append([name, *values])
    return rows


def text_table(rows: Sequence[Sequence[str]]) -> str:
    """Columns side by side, each as wide as its longest cell, with a line below the head."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])


def comparison_figure(runs: Mapping[str, RunResults]) -> Figure:
    """AP against epochs and against minutes of training, and the loss against epochs; a colour for each run."""
    drawn, axes = panels(3, height=2.8 + 0.2 * -(-len(runs) // 3))
    with mpl.rc_context(STYLE):
        for i, (name, run) in enumerate(runs.items()):
            colour, style = COLOURS[i % len(COLOURS)], ("-", "--", ":")[i // len(COLOURS) % 3]
            precision = [line["AP"] for line in run.evaluations]
            epochs = [run.epoch_of(line) for line in run.evaluations]
            axes[0].plot(epochs, precision, style, marker="o", color=colour, label=plain(name))
            timed = [line for line in run.evaluations if "train_seconds" in line]
            minutes = [line["train_seconds"] / 60 for line in timed]
            axes[1].plot(minutes, [line["AP"] for line in timed], style, marker="o", color=colour)
            steps = [line for line in run.train if "loss" in line]
            axes[2].plot([run.epoch_of(s) for s in steps], smooth([s["loss"] for s in steps]), style, color=colour)
        top = min(1.0, max((line["AP"] for run in runs.values() for line in run.evaluations), default=1.0) * 1.1 + 0.02)
        axes[0].set(title="AP", xlabel="epoch", ylim=(0, top))
        axes[1].set(title="AP", xlabel="minutes of training", ylim=(0, top))
        axes[2].set(title="Loss (sum of all terms)", xlabel="epoch", ylim=(0, None))
        for ax in axes:
            ax.grid(axis="y")
            ax.set_xlim(0, None)
        handles, labels = axes[0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside lower center", ncols=min(len(runs), 3), frameon=False)
    return drawn


def _number(value: float | None, unit: float = 1, form: str = "{:.3g}") -> str:
    return NONE if value is None else form.format(value / unit)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"train": {"lr": 1}} → {"train.lr": 1}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flatten(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def _value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return " ".join(map(_value, value)) or "()"
    return f"{value:g}" if isinstance(value, float) else str(value)
