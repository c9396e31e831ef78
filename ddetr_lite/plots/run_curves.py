"""The curves of one run, for its report: losses, average precision, and how the machine did."""

import math
from collections.abc import Callable

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ddetr_lite.engine.evaluate import in_words
from ddetr_lite.engine.run_results import Line, RunResults
from ddetr_lite.plots.style import COLOURS, INK, MUTED, STYLE, panels, plain
from ddetr_lite.plots.training import smooth

METRIC_NAMES = {"AP": "AP", "AP50": "AP50", "AP_small": "small", "AP_medium": "medium", "AP_large": "large"}


def score(line: Line | None, name: str) -> str:
    """A metric of an evaluation: three digits; a dash where it was not measured, or the set has no such objects."""
    return in_words((line or {}).get(name, -1))


def loss_terms(run: RunResults) -> dict[str, list[str]]:
    """The terms of the loss, {term: endings of the layers that have it}: {"class": ["", "/0", "/encoder"], ...}."""
    keys = list(dict.fromkeys(key for line in run.train for key in line if key.startswith("loss/")))
    terms: dict[str, list[str]] = {}
    for key in keys:
        term, slash, layer = key.removeprefix("loss/").partition("/")
        terms.setdefault(term, []).append(slash + layer)
    return terms


def losses(run: RunResults) -> Figure:
    """Each term of the last decoder layer's loss against the epochs, a panel for each."""
    terms = loss_terms(run)
    drawn, axes = panels(len(terms), height=2.5)
    with mpl.rc_context(STYLE):
        for i, (term, ax) in enumerate(zip(terms, axes, strict=True)):
            _curve(ax, run, f"loss/{term}", COLOURS[0], smoothed=True)
            ax.set(title=plain(term), ylim=(0, None), xlabel="epoch")
            ax.set_ylabel("weighted loss" if i == 0 else "")
    return drawn


def auxiliary_losses(run: RunResults) -> Figure | None:
    """The same for earlier decoder layers, the encoder's proposals and hints; None where a model has none of them."""
    terms = {term: [e for e in endings if e] for term, endings in loss_terms(run).items()}
    terms = {term: endings for term, endings in terms.items() if endings}
    if not terms:
        return None
    endings = list(dict.fromkeys(ending for own in terms.values() for ending in own))
    drawn, axes = panels(len(terms), height=2.1)
    with mpl.rc_context(STYLE):
        for term, ax in zip(terms, axes, strict=True):
            for i, ending in enumerate(endings):
                style = "-" if i < len(COLOURS) else "--"
                _curve(ax, run, f"loss/{term}{ending}", COLOURS[i % len(COLOURS)], True, layer_name(ending), style)
            ax.set(title=plain(term), ylim=(0, None), xlabel="epoch")
        handles, labels = axes[0].get_legend_handles_labels()
        drawn.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False)
    return drawn


def layer_name(ending: str) -> str:
    """What the ending of a loss's name means: "/0" is the first decoder layer."""
    words = ending.strip("/").split("/")
    layer = f"layer {int(words[-1]) + 1}" if words[-1].isdigit() else ""
    if words[0] == "hint":
        return f"hints, {layer or 'last layer'}"
    return layer or plain(" ".join(words))


def precision(run: RunResults) -> Figure:
    """AP and AP50, and AP of small, medium and large objects, against the epochs."""
    drawn, axes = panels(2, height=2.7, sharey=True)
    top = min(1.0, 0.02 + 1.15 * max((line.get(n, 0) for line in run.evaluations for n in METRIC_NAMES), default=1.0))
    with mpl.rc_context(STYLE):
        for ax, names, title in (
            (axes[0], ("AP", "AP50"), "All objects"),
            (axes[1], ("AP_small", "AP_medium", "AP_large"), "AP by size"),
        ):
            for i, name in enumerate(names):
                lines = [line for line in run.evaluations if line.get(name, -1) >= 0]  # −1: no such objects
                at, values = [run.epoch_of(line) for line in lines], [line[name] for line in lines]
                ax.plot(at, values, "o-", color=COLOURS[i], label=METRIC_NAMES[name])
            ax.set(title=title, xlabel="epoch", ylim=(0, top), xlim=(0, None))
            ax.grid(axis="y")
            ax.legend(loc="upper left")
    return drawn


def by_class(evaluation: Line) -> Figure:
    """A lying bar for each class, best on top: the AP of one evaluation. Many classes stand in two columns."""
    pairs = sorted(class_precision(evaluation).items(), key=lambda pair: -pair[1])
    columns = 2 if len(pairs) > 24 else 1
    rows = -(-len(pairs) // columns)
    drawn, axes = panels(columns, height=0.5 + 0.17 * max(rows, 3), sharex=True)
    with mpl.rc_context(STYLE):
        for column, ax in enumerate(axes):
            own = pairs[column * rows : (column + 1) * rows]
            bars = ax.barh(range(len(own)), [value for _, value in own], height=0.72, color=COLOURS[0])
            ax.bar_label(bars, [f"{value:.2f}" for _, value in own], padding=3, fontsize=7.5, color=INK)
            ax.set_yticks(range(len(own)), [plain(name) for name, _ in own], fontsize=7.5)
            ax.set(xlim=(0, 1), ylim=(rows - 0.4, -0.6), xlabel="AP")
            ax.grid(axis="x")
    return drawn


def class_precision(evaluation: Line) -> dict[str, float]:
    """The AP of every class that the validation set has objects of."""
    return {key[3:]: value for key, value in evaluation.items() if key.startswith("AP/") and value >= 0}


def machine(run: RunResults) -> Figure:
    """Learning rate, length of the gradient, pictures a second and, of a GPU, memory against the epochs; skipped steps as
    crosses.
    """
    drawn, axes = panels(3, height=2.4) if run.memory is None else panels(2, rows=2, height=4.2)
    with mpl.rc_context(STYLE):
        _curve(axes[0], run, "lr", COLOURS[0], scale=lambda value: 1000 * value)
        axes[0].set(title="Learning rate × 1000", ylim=(0, None))
        _curve(axes[1], run, "gradient_norm", COLOURS[1])
        axes[1].set(title="Gradient before clipping")
        if any(line.get("gradient_norm", 0) > 0 for line in run.train):
            axes[1].set_yscale("log")
        clip = run.recipe.get("train", {}).get("clip_norm")
        if clip:
            axes[1].axhline(clip, color=MUTED, linestyle="--", linewidth=1.2)
            axes[1].annotate(f"clipped to {clip:g}", (1, clip), (0, 3), ("axes fraction", "data"), "offset points",
                             ha="right", fontsize=8, color=MUTED)  # fmt: skip
        if run.skips:
            at = [run.epoch_of(line) for line in run.skips]
            axes[1].plot(at, [0.02] * len(at), "x", color=COLOURS[3], transform=axes[1].get_xaxis_transform(),
                         label="skipped step", clip_on=False)  # fmt: skip
            axes[1].legend(loc="upper right")
        _curve(axes[2], run, "pictures_per_second", COLOURS[2])
        axes[2].set(title="Pictures a second", ylim=(0, None))
        if run.memory is not None:
            _curve(axes[3], run, "memory_bytes", COLOURS[4], scale=lambda value: value / 2**30)
            axes[3].set(title="Peak GPU memory, GiB", ylim=(0, None))
        for ax in axes:
            ax.set_xlabel("epoch")
    return drawn


def _curve(
    ax: Axes,
    run: RunResults,
    key: str,
    colour: str,
    smoothed: bool = False,
    label: str = "",
    style: str = "-",
    scale: Callable[[float], float] = float,
) -> None:
    """A field of the training lines; smoothed: its mean over about a twentieth of the log, on a faint line of
    the values themselves."""
    lines = [line for line in run.train if math.isfinite(line.get(key, math.nan))]
    at, values = [run.epoch_of(line) for line in lines], [scale(line[key]) for line in lines]
    if smoothed and not label:
        ax.plot(at, values, color=colour, alpha=0.25, linewidth=0.8)
    ax.plot(
        at,
        smooth(values, 1 - 1 / max(len(values) / 20, 1)) if smoothed else values,
        style,
        color=colour,
        label=label or None,
        linewidth=1.5,
    )
    ax.grid(axis="y")
    ax.set_xlim(0, None)
