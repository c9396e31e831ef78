"""The detectors that come with the course, the query it follows, and notebook 00's parts at work in them."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ddetr_lite import course
from ddetr_lite.course import shipped
from ddetr_lite.course.following import OBJECT
from ddetr_lite.engine.predict import predict
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
