"""COCO's average precision, computed by pycocotools on what a detector finds in a data set."""

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torchvision.ops import box_convert
from tqdm import tqdm

from ddetr_lite.datasets.coco import CocoDetection, CocoFolder
from ddetr_lite.datasets.fields import area_of, check_size_bands, is_crowd, size_of
from ddetr_lite.datasets.loading import evaluation_batches, loader
from ddetr_lite.datasets.transforms import eval_transform
from ddetr_lite.engine.checkpoint import LoadedModel, augment_of
from ddetr_lite.engine.errors import check_pictures
from ddetr_lite.models.presets import Model
from ddetr_lite.progress import hidden
from ddetr_lite.set_prediction.postprocess import Detections, without_repeats

METRICS = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
"""Means over IoU 0.50..0.95 unless the name has one; −1 where the set has no such objects. By size: see `ap_of`."""


@torch.no_grad()
def detect(
    model: Model,
    dataset: CocoDetection,
    batch: int = 16,
    workers: int = 0,
    progress: bool = False,
    rank: int = 0,
    size: int = 1,
    padded: bool = False,
) -> Iterator[tuple[int, Detections]]:
    """(image id, detections in pixels of the original picture) for every picture of the data set. The model's mode is kept.

    batch: at most so many pictures at once, of one size (`evaluation_batches`): it changes the speed, and no detection.
    rank, size: of several processes each takes every `size`-th batch, so that together they see each picture once.
    padded: instead, batches in the data set's order, padded as in training: a model that has learned a few pictures by heart
    has learned their padding as well.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    batches = evaluation_batches(dataset, batch, padded)[rank::size]
    shown = tqdm(loader(dataset, batches, workers, device), "evaluating", disable=hidden(progress), leave=False)
    try:
        for loaded in shown:
            sizes = loaded.original_sizes / torch.tensor(loaded.images.sizes)  # (B, 2)
            scales = sizes.flip(1).repeat(1, 2)  # (B, 4)
            for image_id, scale, found in zip(loaded.image_ids.tolist(), scales, model(loaded.images), strict=True):
                result = {k: v.cpu() for k, v in found.items()}
                yield image_id, {**result, "boxes": result["boxes"] * scale}
    finally:  # also where nobody asks for the rest
        model.train(was_training)


def evaluate(
    model: Model,
    dataset: CocoDetection,
    size_bands: tuple[float, float] = (32, 96),
    batch: int = 16,
    workers: int = 0,
    progress: bool = False,
    nms: float | None = None,
    padded: bool = False,
) -> dict[str, float]:
    """COCO's metrics of a model on a data set: `METRICS`, and "AP/name" for each class. The model's mode is kept.

    dataset: with the model's classes, and its pictures resized as the model's were (`validation_set` sees to both). nms: judge
    what `without_repeats` leaves at this IoU; padded: see `detect`. Raises ValueError for another number of classes.
    """
    if len(dataset.classes) != model.classes:
        raise ValueError(
            f"{dataset.folder.annotations} has {len(dataset.classes)} classes, the model {model.classes}: give the data set "
            "the model's (CocoDetection(..., classes=loaded.classes), or validation_set(loaded, folder))"
        )
    detections = dict(detect(model, dataset, batch, workers, progress, padded=padded))
    if nms is not None:
        detections = {image_id: without_repeats(found, nms) for image_id, found in detections.items()}
    return ap_of(detections, dataset, size_bands)


def validation_set(loaded: LoadedModel, folder: str | Path, split: str = "val") -> CocoDetection:
    """A split for judging a model: labels as the model has them, pictures resized as those that it was validated on.

    Raises FileNotFoundError where there is no such split, ValueError for a category that the model does not know.
    """
    return CocoDetection(CocoFolder.find(folder, split), eval_transform(augment_of(loaded)), loaded.classes)


def ap_of(
    detections: dict[int, Detections], dataset: CocoDetection, size_bands: tuple[float, float] = (32, 96)
) -> dict[str, float]:
    """COCO's metrics of detections, {image id: ...}, against a data set's annotations, crowds included.

    size_bands: √area where small ends and large begins, in pixels; both below 1: as shares of √(height·width), for sets
    whose pictures all have one size. A picture without detections counts, and so does a set without any. Labels are positions
    in `dataset.classes`; results in COCO's own form come in by `errors.detections_from_results`. Raises ValueError for
    pictures that the data set does not have, and for scores or boxes that are not finite.
    """
    _check(detections, dataset)
    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        truth = _truth(dataset)
        found = results_of(detections, dataset)
        results = truth.loadRes(found) if found else _coco({**truth.dataset, "annotations": []})  # loadRes([]) raises
        evaluation = COCOeval(truth, results, "bbox")
        evaluation.params.imgIds = sorted(image["id"] for image in dataset.images)
        evaluation.params.areaRng = area_ranges(dataset, size_bands)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    metrics = dict(zip(METRICS, map(float, evaluation.stats[:6]), strict=True))
    precision = evaluation.eval["precision"][:, :, :, 0, -1]  # (IoU, recall, class) over all sizes
    for index, category in enumerate(evaluation.params.catIds):
        values = precision[:, :, index]
        metrics[f"AP/{dataset.categories[category]}"] = (
            float(values[values > -1].mean()) if (values > -1).any() else -1.0
        )
    return metrics


def _check(detections: dict[int, Detections], dataset: CocoDetection) -> None:
    check_pictures(detections, dataset)
    for image_id, found in detections.items():
        for name in ("scores", "boxes"):
            if not torch.isfinite(found[name]).all():
                raise ValueError(f"image id {image_id}: {name} hold NaN or infinity, which nobody can judge")


def _truth(dataset: CocoDetection) -> COCO:
    """The data set's annotations for pycocotools, whose ids must be unique and not 0, and which needs areas and crowds."""
    annotations: list[dict[str, Any]] = []
    for objects in dataset.annotations:
        for annotation in objects:
            _, _, width, height = annotation["bbox"]
            annotations.append(
                {
                    **annotation,
                    "id": len(annotations) + 1,
                    "area": area_of(annotation) or width * height,
                    "iscrowd": int(bool(is_crowd(annotation))),
                }
            )
    categories = [{"id": i, "name": name} for i, name in dataset.categories.items()]
    return _coco({"info": {}, "images": dataset.images, "annotations": annotations, "categories": categories})


def _coco(content: dict[str, Any]) -> COCO:
    """A COCO object from what its file would hold."""
    coco = COCO()
    coco.dataset = content
    coco.createIndex()
    return coco


def results_of(detections: dict[int, Detections], dataset: CocoDetection) -> list[dict[str, Any]]:
    """Detections as COCO's results: "image_id", "category_id", "bbox" [x, y, width, height] in pixels, "score"."""
    category_of_label = {label: category for category, label in dataset.label_of_category.items()}
    results = []
    for image_id, found in detections.items():
        xywh = box_convert(found["boxes"], "xyxy", "xywh")
        for box, score, label in zip(xywh.tolist(), found["scores"].tolist(), found["labels"].tolist(), strict=True):
            if label in category_of_label:  # a class of the model that this data set does not have cannot be judged
                results.append(
                    {"image_id": image_id, "category_id": category_of_label[label], "bbox": box, "score": score}
                )
    return results


def in_words(score: float) -> str:
    """A metric with three decimals; a dash where there is nothing to measure it on, for which pycocotools has −1."""
    return f"{score:.3f}" if score >= 0 else "–"


def area_ranges(dataset: CocoDetection, size_bands: tuple[float, float]) -> list[list[float]]:
    """Areas in square pixels, from and to, of all, small, medium and large objects. Raises as `ap_of`."""
    check_size_bands(size_bands)
    small, large = size_bands
    if large < 1:
        sizes = {size_of(image) for image in dataset.images}
        if len(sizes) > 1 or None in sizes:
            raise ValueError(
                f"size_bands={size_bands} are shares of the picture, but pictures differ in size, or do not say it: "
                "give pixels, for example --size-bands 32 96"
            )
        height, width = sizes.pop() or (0, 0)
        side = float(np.sqrt(height * width))
        small, large = small * side, large * side
    return [[0, 1e10], [0, small**2], [small**2, large**2], [large**2, 1e10]]
