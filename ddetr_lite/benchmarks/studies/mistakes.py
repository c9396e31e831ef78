"""Where the detections of a study's models go wrong: errors by kind, for each row's longest schedule with seed 0."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ddetr_lite.benchmarks.studies.results import Outcome, read_json
from ddetr_lite.datasets.coco import CocoDetection, CocoFolder
from ddetr_lite.engine.errors import KINDS, best_threshold, detections_from_results, find_errors
from ddetr_lite.engine.evaluate import ap_of
from ddetr_lite.set_prediction.postprocess import without_repeats
from ddetr_lite.writing import write_json

NMS = 0.5
"""IoU above which, of two detections of a class, the surer one alone is kept: Faster R-CNN's own rule in torchvision."""
WITH_NMS = ("AP", "AP50")


def mistakes(found: Sequence[Outcome], folder: Path) -> dict[str, dict[str, Any]]:
    """By row: "run", its "epochs" and "step", the "threshold" of the score at which F1 is best, "objects", and how many there
    are of each of `KINDS`; "nms": `WITH_NMS` of the same detections once repeats are taken out (`NMS`).

    Runs whose detections are not there (`detections.json` in the run's folder) are taken from `mistakes.json` in the study's
    folder, which is written anew. Raises ValueError where that file is broken.
    """
    path = folder / "mistakes.json"
    known: dict[str, dict[str, Any]] = read_json(path) if path.exists() else {}
    sets: dict[Any, CocoDetection] = {}
    counted: dict[str, dict[str, Any]] = {}
    for outcome in found:
        run, detections, step = outcome.run, outcome.results.detections(), outcome.last["step"]
        if run.seed or run.epochs != run.row.epochs[-1]:
            continue
        about = {"run": run.name, "step": step}
        if detections is not None and detections.get("step") == step:
            data = run.recipe.data
            if data not in sets:
                sets[data] = CocoDetection(CocoFolder.find(data.folder, data.val_split))
            grouped = detections_from_results(detections["detections"], sets[data])
            threshold = best_threshold(find_errors(grouped, sets[data]))
            errors = find_errors(grouped, sets[data], threshold)
            objects = sum(len(picture.true_labels) for picture in errors.pictures)
            kept = {image_id: without_repeats(one, NMS) for image_id, one in grouped.items()}
            scores = ap_of(kept, sets[data], data.size_bands)
            counted[run.row.name] = {
                **about, "epochs": run.epochs, "threshold": threshold, "objects": objects, **errors.counts,
                "nms": {name: scores[name] for name in WITH_NMS},
            }  # fmt: skip
        elif about.items() <= known.get(run.row.name, {}).items():  # counted where the detections were
            counted[run.row.name] = known[run.row.name]
    if counted:
        write_json(path, counted, indent=1)
    return counted


def nms_table(labels: dict[str, str], known: dict[str, dict[str, Any]], found: Sequence[Outcome]) -> list[list[str]]:
    """A line for each row of `labels` (name → label): its scores as they are, and with non-maximum suppression."""
    last = {outcome.run.name: outcome.last for outcome in found}
    lines = [["model", *(f"{name}{what}" for name in WITH_NMS for what in ("", " with NMS"))]]
    for name, label in labels.items():
        if "nms" in known.get(name, {}) and known[name]["run"] in last:
            pairs = ((last[known[name]["run"]][metric], known[name]["nms"][metric]) for metric in WITH_NMS)
            lines.append([label, *(f"{value:.3f}" for pair in pairs for value in pair)])
    return lines


def mistakes_table(labels: dict[str, str], known: dict[str, dict[str, Any]]) -> list[list[str]]:
    """A line for each row of `labels` (name → label): how many of each kind there are for a hundred objects."""
    lines = [["model", "epochs", "score above", *KINDS]]
    for name, label in labels.items():
        if name in known:
            row = known[name]
            shares = [f"{100 * row[kind] / max(row['objects'], 1):.1f}" for kind in KINDS]
            lines.append([label, str(row["epochs"]), f"{row['threshold']:.2f}", *shares])
    return lines
