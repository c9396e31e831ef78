"""The report's sections with pictures: where queries look as training goes on, and what is wrong with the detections."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ddetr_lite.datasets.coco import CocoDetection
from ddetr_lite.engine.errors import (
    KINDS,
    PictureErrors,
    SetErrors,
    best_threshold,
    detections_from_results,
    find_errors,
)
from ddetr_lite.engine.run_results import Line, RunResults
from ddetr_lite.plots.page import NOTHING, Html, gallery, legend, missing, paragraph, picture
from ddetr_lite.plots.run_pictures import (
    KIND_COLOURS,
    KIND_MEANINGS,
    LABELS,
    TRUE,
    error_counts,
    picture_with_errors,
    watched_row,
)
from ddetr_lite.plots.style import plain

PANELS = 6  # of a watched object, from the first evaluation to the last


def queries_section(run: RunResults, data: CocoDetection | str) -> Html:
    """A row of panels for each watched object."""
    lines = [line for line in run.watched() if line.get("objects")]
    if not lines:
        failed = next((f" ({line['error']})" for line in run.watched() if line.get("error")), "")
        return missing(f"The run's folder has no watched.jsonl with objects in it{failed}: a new run writes it.")
    if isinstance(data, str):
        return missing(data)
    result = paragraph(
        "The largest object of each of a few validation pictures. Orange: where the query that finds it, or else is nearest, "
        "looked, in the last decoder layer; larger and stronger dots weigh more. Dashed green: the true box; blue: the "
        "predicted one."
    )
    for image_id, which in dict.fromkeys((o["image_id"], o["object"]) for line in lines for o in line["objects"]):
        result += _watched_object(run, data, lines, image_id, which)
    return result


def _watched_object(run: RunResults, data: CocoDetection, lines: Sequence[Line], image_id: int, which: int) -> Html:
    pixels = _pixels(data, image_id)
    if isinstance(pixels, str):
        return missing(pixels)
    found = [
        (line, entry)
        for line in lines
        for entry in line["objects"]
        if (entry["image_id"], entry["object"]) == (image_id, which)
    ]
    chosen = _spread(found, PANELS)
    name = _object_name(data, image_id, which)
    seen = [(_panel_title(run, line, entry, data.classes), entry) for line, entry in chosen]
    first, last = chosen[0][1]["score"], chosen[-1][1]["score"]
    points = any(entry.get("points") for _, entry in chosen)
    alt = (
        f"Image id {image_id} at {len(chosen)} evaluations, with the true and the predicted box of the {name}"
        f"{' and the points its query looks at' if points else ''}: its score goes from {first:.2f} to {last:.2f}."
    )
    caption = f"{name}, image id {image_id}" + ("" if points else "; this model has no attention points to show")
    return picture(watched_row(pixels, seen), alt, caption)


def _spread(found: Sequence[Any], count: int) -> list[Any]:
    """At most `count` of them, first and last included, evenly spread."""
    if len(found) <= count:
        return list(found)
    return [found[round(i * (len(found) - 1) / (count - 1))] for i in range(count)]


def _panel_title(run: RunResults, line: Line, entry: dict[str, Any], classes: Sequence[str]) -> str:
    epoch = f"epoch {line.get('epoch', round(run.epoch_of(line), 1))}"
    label = entry.get("label", -1)
    if not entry.get("box") or not 0 <= label < len(classes):
        return f"{epoch}\nnothing found"
    return plain(f"{epoch}\n{classes[label][:14]} {entry['score']:.2f}")


def _object_name(data: CocoDetection, image_id: int, which: int) -> str:
    objects = data.objects(_index(data, image_id))
    return data.categories[objects[which]["category_id"]] if which < len(objects) else "object"


def errors_section(run: RunResults, data: CocoDetection | str, threshold: float | None, worst: int) -> Html:
    """How many errors of each kind there are, and the worst pictures."""
    content = run.detections()
    if content is None:
        return missing("The run's folder has no detections.json: a new run writes it at each evaluation.")
    if isinstance(data, str):
        return missing(data)
    try:
        detections = detections_from_results(content["detections"], data)
        if threshold is None:
            threshold = best_threshold(find_errors(detections, data))
        errors = find_errors(detections, data, threshold)
    except (KeyError, ValueError) as error:
        return missing(f"The detections do not fit the data: {error}.")
    counts = errors.counts
    told = ", ".join(f"{counts[kind]} {kind}" for kind in KINDS)
    epoch = f" after epoch {content['epoch']}" if "epoch" in content else ""
    intro = paragraph(
        f"Detections on {len(data)} validation pictures{epoch} that score at least {threshold:.3g}, by the kinds of error of "
        "TIDE (Bolya et al. 2020); at this score the harmonic mean of precision and recall is best unless another was asked "
        "for. A green dashed box is a true one."
    )
    entries = [(KIND_COLOURS[kind], kind, KIND_MEANINGS[kind], kind == "missed") for kind in KINDS]
    if any("ignored" in found.kinds for found in errors.pictures):
        entries.append((KIND_COLOURS["ignored"], "ignored", KIND_MEANINGS["ignored"], False))
    entries.append((TRUE, "true box", "where an object is", True))
    chart = picture(error_counts(counts), f"Bars of how many detections there are of each kind: {told}.")
    return intro + legend(entries) + chart + _worst(errors, data, worst)


def _worst(errors: SetErrors, data: CocoDetection, worst: int) -> Html:
    chosen = errors.worst(worst)
    if not chosen:
        return paragraph("No picture has an error.")
    pictures, unreadable = [], NOTHING
    for found in chosen:
        pixels = _pixels(data, found.image_id)
        if isinstance(pixels, str):
            unreadable += missing(pixels)
            continue
        told = _told(found)
        alt = f"Image id {found.image_id} with true boxes dashed in green and detections coloured by kind: {told}."
        drawn = picture_with_errors(pixels, found, data.classes)
        pictures.append(picture(drawn, alt, f"image id {found.image_id}: {told}"))
    intro = (
        f"The {len(chosen)} worst pictures first by the scores of what is wrong, and 1 for each missed object. "
        f"Of what is wrong the {LABELS} surest, and of what is missed the {LABELS} largest, bear their classes."
    )
    return paragraph(intro) + gallery(pictures) + unreadable


def _told(found: PictureErrors) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in found.counts.items() if count)


def _index(data: CocoDetection, image_id: int) -> int:
    return next(i for i, image in enumerate(data.images) if image["id"] == image_id)


def _pixels(data: CocoDetection, image_id: int) -> Tensor | str:
    """The picture, or a sentence why there is none."""
    try:
        return data.read_image(_index(data, image_id))
    except StopIteration:
        return f"{data.folder.annotations} has no image id {image_id}: the data has changed since the run."
    except ValueError as error:
        return f"This picture cannot be shown: {error}."
