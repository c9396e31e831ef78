"""A trained model on somebody's own pictures."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision import tv_tensors

from ddetr_lite.batching import check_images
from ddetr_lite.datasets.transforms import eval_transform
from ddetr_lite.engine.checkpoint import LoadedModel, augment_of
from ddetr_lite.set_prediction.postprocess import Detections, without_repeats


@dataclass(frozen=True)
class Found:
    """One object: its class, how sure the model is (0..1), and its box's corners in pixels of the picture."""

    label: str
    score: float
    box: tuple[float, float, float, float]


def threshold_for(loaded: LoadedModel) -> float:
    """The score from which on detections are worth showing: where F1 was best on the validation pictures, as a run's best.pt
    says; 0.5 where the checkpoint says nothing.
    """
    known = loaded.about.get("threshold")
    return 0.5 if known is None else float(known)


@torch.no_grad()
def predict(
    loaded: LoadedModel, pixels: Tensor, threshold: float | None = None, nms: float | None = None
) -> list[Found]:
    """The objects in a picture (3, H, W), uint8, that score at least `threshold`, best first.

    threshold: by default `threshold_for` this model. nms: only those that `without_repeats` leaves at this IoU. The picture
    is resized as the model's validation pictures were; boxes are in pixels of the given picture. Raises ValueError for
    anything but one picture.
    """
    check_images([pixels])
    least = threshold_for(loaded) if threshold is None else threshold
    image, _ = eval_transform(augment_of(loaded))(tv_tensors.Image(pixels), {})
    detections: list[Detections] = loaded.model.eval()([image.as_subclass(Tensor)])
    found = detections[0] if nms is None else without_repeats(detections[0], nms)
    scale = torch.tensor([pixels.shape[2] / image.shape[2], pixels.shape[1] / image.shape[1]]).repeat(2)
    boxes = found["boxes"].cpu() * scale
    return [
        Found(loaded.classes[label], score, tuple(box))
        for label, score, box in zip(found["labels"].tolist(), found["scores"].tolist(), boxes.tolist(), strict=True)
        if score >= least
    ]
