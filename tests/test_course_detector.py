"""The detectors that come with the course, the query it follows, and notebook 00's parts at work in them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ddetr_lite import course, kernels
from ddetr_lite.course import plugging, shipped
from ddetr_lite.course.following import OBJECT
from ddetr_lite.course.registry import EXERCISES
from ddetr_lite.engine.predict import predict
from ddetr_lite.layers import deformable_attention
from ddetr_lite.set_prediction import losses
from ddetr_lite.set_prediction.boxes import box_iou, cxcywh_to_xyxy


@pytest.fixture(autouse=True)
def _package_is_itself() -> Iterator[None]:
    yield
    course.reset()


def test_the_checkpoint_is_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert course.checkpoint().is_file()
    assert course.detector() is course.detector()


def test_a_missing_checkpoint_is_named_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped, "DATA", Path("nowhere"))
    with pytest.raises(FileNotFoundError, match=r"nowhere/checkpoints/shapes\.pt is not there.*git restore"):
        course.checkpoint()
    with pytest.raises(ValueError, match="no detector 'phto'"):
        course.checkpoint("phto")  # type: ignore[arg-type]


def test_the_followed_query_finds_the_ring() -> None:
    scene, query = course.picture(), course.followed_query()
    layers, heads, levels, points = query.weights.shape
    assert query.label == scene.names[OBJECT] == "ring"
    assert query.boxes.shape == (layers + 1, 4)
    assert query.locations.shape == (layers, heads, levels, points, 2)
    assert len(query.level_shapes) == levels
    torch.testing.assert_close(query.weights.sum((-2, -1)), torch.ones(layers, heads))
    assert box_iou(cxcywh_to_xyxy(query.boxes[-1]) * 96, scene.boxes[OBJECT]) >= 0.5


def test_the_detector_runs_on_parts_of_notebook_00(tmp_path: Path) -> None:
    calls: list[str] = []

    def corners(boxes: Tensor) -> Tensor:
        calls.append("corners")
        cx, cy, w, h = boxes.unbind(-1)
        return torch.stack((cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2), dim=-1)

    before = predict(course.detector(), course.picture().pixels)
    assert course.use("cxcywh_to_xyxy", corners, folder=tmp_path)
    calls.clear()
    after = predict(course.detector(), course.picture().pixels)
    assert calls == ["corners"]
    assert [f.label for f in after] == [f.label for f in before]


def test_a_learners_class_loss_also_trains_in_pieces(tmp_path: Path) -> None:
    """`--accumulate` and several GPUs want of each piece its share of the step's mean."""
    torch.manual_seed(3)
    logits, boxes = torch.randn(2, 3, 5, 4), torch.rand(2, 3, 5, 4)
    targets = [{"labels": torch.arange(n), "boxes": torch.full((n, 4), 0.5)} for n in (2, 0, 1)]
    whole = losses.set_losses(losses.Outputs(logits, boxes), targets, losses.DETR_LOSS)["class"]
    assert course.use("class_loss", EXERCISES["class_loss"].reference, folder=tmp_path)
    step, parts = losses.count(targets, logits.device), (slice(0, 1), slice(1, 3))
    shares = [
        losses.set_losses(losses.Outputs(logits[:, own], boxes[:, own]), targets[own], losses.DETR_LOSS, step)["class"]
        for own in parts
    ]
    torch.testing.assert_close(sum(shares), whole)


@pytest.mark.parametrize("name", ["multi_scale_attention", "sampling_locations"])
def test_a_fused_kernel_does_not_go_past_a_learners_part(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def on_a_gpu(value: Tensor) -> str:
        return "triton"

    for module in (kernels, deformable_attention, plugging):
        monkeypatch.setattr(module, "choose_backend", on_a_gpu)
    layer = deformable_attention.MultiScaleDeformableAttention(16, heads=2, levels=1, points=2)
    query, reference = torch.randn(1, 3, 16), torch.full((1, 3, 1, 2), 0.5)
    assert course.use(name, EXERCISES[name].reference, folder=tmp_path)
    assert layer(query, reference, torch.randn(1, 6, 16), [(2, 3)]).shape == (1, 3, 16)
    course.reset()
    with pytest.raises(ValueError, match="backend='triton' needs tensors on a CUDA device"):
        layer(query, reference, torch.randn(1, 6, 16), [(2, 3)])
