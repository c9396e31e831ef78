"""The report of a run: one HTML file with all that its folder knows, to read or to send to somebody.

A section for which the run has no data says why in a sentence, and how one gets it.
"""

import json
from pathlib import Path
from typing import Any

from ddetr_lite.datasets.coco import CocoDetection, CocoFolder
from ddetr_lite.engine.data import parts
from ddetr_lite.engine.repeat import command
from ddetr_lite.engine.run_results import RunResults, read_run
from ddetr_lite.plots import run_curves
from ddetr_lite.plots.page import (
    NOTHING,
    Html,
    code,
    folded,
    heading,
    missing,
    page,
    paragraph,
    picture,
    table,
    tiles,
)
from ddetr_lite.plots.report_pictures import errors_section, queries_section
from ddetr_lite.wording import duration
from ddetr_lite.writing import write_bytes


def write_report(
    run: str | Path, folder: str | Path | None = None, threshold: float | None = None, worst: int = 20
) -> Path:
    """Write `report.html` into a run's folder, and return its path.

    run: the folder or its log. folder: where the data is now, by default where the recipe says. threshold: detections that
    score less are no errors; by default the score at which F1 is best. worst: how many of the worst pictures are shown.
    Raises ValueError where there is no run.
    """
    found = read_run(run)
    target = found.folder / "report.html"
    write_bytes(target, report(found, folder, threshold, worst).encode())
    return target


def report(run: RunResults, folder: str | Path | None = None, threshold: float | None = None, worst: int = 20) -> str:
    """The page's text; arguments as in `write_report`."""
    data = evaluated_pictures(run, folder)
    sections = [
        ("numbers", "Key numbers", _numbers(run)),
        ("loss", "Loss", _losses(run)),
        ("precision", "Average precision", _precision(run)),
        ("classes", "Classes", _classes(run)),
        ("machine", "Schedule and speed", _machine(run)),
        ("skipped", "Skipped steps", _skipped(run)),
        ("queries", "Where queries look", queries_section(run, data)),
        ("errors", "Errors", errors_section(run, data, threshold, worst)),
        ("recipe", "Recipe", _recipe(run)),
    ]
    about = [_model_line(run), _data_line(run), _machine_line(run)]
    return page(f"{run.recipe.get('name', 'unknown')}: {run.name}", about, sections, "Made by ddetr-lite report.")


def evaluated_pictures(run: RunResults, folder: str | Path | None = None) -> CocoDetection | str:
    """The pictures that the run was evaluated on, unresized; or a sentence why they cannot be had."""
    data = run.recipe.get("data", {})
    root = folder or data.get("folder")
    if root is None:
        return "The log does not say which data the run was made with; name the folder with --folder."
    _, part = parts(data)
    classes = run.start.get("classes")
    try:
        return part.of(CocoDetection(CocoFolder.find(root, part.split), classes=classes, limit=part.limit))
    except (OSError, ValueError) as error:
        return f"The run's pictures cannot be read ({error}); name the folder where they are now with --folder."


def _model_line(run: RunResults) -> str:
    model, parameters = run.recipe.get("model", {}), run.start.get("parameters")
    backbone = model.get("backbone", {}).get("name")
    words = [f"Model: {run.row}", f"backbone {backbone}" if backbone else ""]
    words.append(f"{parameters / 1e6:.2f} million parameters" if parameters else "")
    return ", ".join(filter(None, words))


def _data_line(run: RunResults) -> str:
    data = run.recipe.get("data", {})
    words = [f"Data: {data.get('folder', 'unknown')}"]
    for key, what in (("pictures", "pictures to train on"), ("validation_pictures", "to validate on")):
        if key in run.start:
            words.append(f"{run.start[key]} {what}")
    words.append(f"{len(run.start['classes'])} classes" if "classes" in run.start else "")
    words.append("evaluated on the training pictures (overfit)" if data.get("overfit") else "")
    return ", ".join(filter(None, words))


def _machine_line(run: RunResults) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in run.start.get("versions", {}).items())
    return "; ".join(filter(None, [f"Machine: {run.start.get('device', 'unknown')}", versions, f"log of {run.date}"]))


def _numbers(run: RunResults) -> Html:
    best, values = run.best, {}
    if best is not None:
        values = {"best AP": run_curves.score(best, "AP"), "AP50": run_curves.score(best, "AP50")}
        values |= {f"AP {size}": run_curves.score(best, f"AP_{size}") for size in ("small", "medium", "large")}
        values["best at epoch"] = f"{best.get('epoch', run.epoch_of(best)):g}"
    epochs = run.recipe.get("train", {}).get("epochs")
    values["epochs"] = f"{run.steps / run.steps_per_epoch:.3g}" + (f" of {epochs}" if epochs else "")
    values["steps"] = str(run.steps)
    if run.speed is not None:
        values["pictures / s"] = f"{run.speed:.3g}"
    if run.seconds is not None:
        values["time in training"] = duration(run.seconds)
    if run.memory is not None:
        values["GPU memory"] = f"{run.memory / 2**30:.2f} GiB"
    note = "The run has not been evaluated yet: AP stands in the log after the first evaluation."
    return tiles(values) if best else tiles(values) + missing(note)


def _losses(run: RunResults) -> Html:
    terms = list(run_curves.loss_terms(run))
    if not terms:
        return missing("No step is in the log yet: the first line comes after --log-every steps.")
    first, last = ({t: line.get(f"loss/{t}") for t in terms} for line in (run.train[0], run.train[-1]))
    told = ", ".join(f"{t} from {first[t]:.3g} to {last[t]:.3g}" for t in terms if first[t] and last[t] is not None)
    result = paragraph("The terms of the last layer, weighted, so that their sum is minimised. Strong: a running mean.")
    result += picture(run_curves.losses(run), f"Curves of each term of the last layer's loss over the epochs: {told}.")
    auxiliary = run_curves.auxiliary_losses(run)
    if auxiliary is None:
        return result + missing("This model has one layer of losses, so there are no auxiliary ones.")
    alt = "Curves of the same terms for earlier decoder layers, the encoder's proposals and hints, over the epochs."
    return result + heading("Earlier layers, proposals and hints") + picture(auxiliary, alt)


def _precision(run: RunResults) -> Html:
    best, last = run.best, run.last
    if best is None or last is None:
        return missing("The run has not been evaluated yet; --evaluate-every says after how many epochs it is.")
    alt = (
        f"Curves of average precision over the epochs, of all objects and by size: AP is {best['AP']:.3f} at best and "
        f"{last['AP']:.3f} at the end, after {len(run.evaluations)} evaluations."
    )
    bands = run.recipe.get("data", {}).get("size_bands", (32, 96))
    share = bands[1] < 1
    told = " and ".join(f"{100 * b:g} % of the picture's side" if share else f"{b:g} pixels" for b in bands)
    return picture(run_curves.precision(run), alt, f"Small and large are divided at √area = {told}.")


def _classes(run: RunResults) -> Html:
    values = run_curves.class_precision(run.best or {})
    if run.best is None or not values:
        return missing("No evaluation in this log has AP by class: it comes with the first evaluation.")
    names = sorted(values, key=lambda name: -values[name])
    alt = (
        f"Bars of AP for {len(names)} classes at the best evaluation: the highest is {names[0]} with "
        f"{values[names[0]]:.2f}, the lowest {names[-1]} with {values[names[-1]]:.2f}."
    )
    absent = [name for name in run.start.get("classes", []) if name not in values]
    note = f"Without objects in the validation set, so without AP: {', '.join(absent)}." if absent else ""
    return picture(run_curves.by_class(run.best), alt, note)


def _machine(run: RunResults) -> Html:
    if not run.train:
        return missing("No step is in the log yet: the first line comes after --log-every steps.")
    alt = (
        "Curves over the epochs: learning rate, length of the gradient before clipping, pictures a second"
        f"{'' if run.speed is None else f' (median {run.speed:.3g})'}{'' if run.memory is None else ', and peak GPU memory'}."
    )
    return picture(run_curves.machine(run), alt)


def _skipped(run: RunResults) -> Html:
    if not run.skips:
        return paragraph("None: no step of this log was skipped for a loss or gradient that was not finite.")
    rows = [
        (
            str(line["step"]),
            f"{line.get('epoch', '')}",
            str(line.get("reason", "")),
            ", ".join(map(str, line.get("pictures", []))),
        )
        for line in run.skips
    ]
    text = f"{len(rows)} of {run.steps} steps changed nothing. Look at their pictures; if there are many, lower --lr."
    shown = table(rows[:50], ("step", "epoch", "reason", "image ids"))
    return (
        paragraph(text)
        + shown
        + (paragraph(f"And {len(rows) - 50} more, in log.jsonl.") if len(rows) > 50 else NOTHING)
    )


def _recipe(run: RunResults) -> Html:
    if not run.recipe:
        return missing("The log has no first line with the recipe; recipe.json in the run's folder may have it.")
    try:
        repeat = paragraph("To train it again:") + code(command(run.recipe, run.row))
    except ValueError as error:
        repeat = missing(f"No command repeats this run here: {error}.")
    start: dict[str, Any] = {k: v for k, v in run.start.items() if k not in ("recipe", "kind", "step")}
    everything = code(json.dumps(run.recipe, indent=2, ensure_ascii=False))
    rest = code(json.dumps(start, indent=2, ensure_ascii=False))
    return repeat + folded("The whole recipe", everything) + folded("What else the log says of the start", rest)
