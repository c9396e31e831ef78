"""What the trainer notes of where the queries of a few fixed objects look."""

import json
from pathlib import Path
from typing import Any

import pytest
import tiny_coco
import torch

from ddetr_lite.datasets.coco import CocoDetection, CocoFolder
from ddetr_lite.engine.watch import WatchedObject, _best, choose_objects, watch, watched_line
from ddetr_lite.layers.deformable_attention import record_samples
from ddetr_lite.models.detr import Detr
from ddetr_lite.models.faster_rcnn import FasterRcnn
from ddetr_lite.models.presets import Model, build, model_config
from ddetr_lite.set_prediction.boxes import cxcywh_to_xyxy, generalized_box_iou


@pytest.fixture(scope="module")
def validation(tmp_path_factory: pytest.TempPathFactory) -> CocoDetection:
    return CocoDetection(CocoFolder.find(tiny_coco.write(tmp_path_factory.mktemp("data")), "val"))


def test_the_largest_objects_of_the_first_pictures_are_watched(validation: CocoDetection) -> None:
    # By image id: 7 has no object, 42 two, 1000 an empty one and one of 20 × 20. A crowd is none.
    assert choose_objects(validation) == [WatchedObject(0, 0), WatchedObject(2, 1)]
    assert choose_objects(validation, 1) == [WatchedObject(0, 0)]


def test_the_order_is_that_of_image_ids(tmp_path: Path) -> None:
    content = tiny_coco.content()
    content["annotations"].append({"id": 6, "image_id": 7, "category_id": 3, "bbox": [1, 1, 5, 5], "area": 25})
    data = CocoDetection(CocoFolder.find(tiny_coco.write(tmp_path, content), "val"))
    assert choose_objects(data, 2) == [WatchedObject(1, 0), WatchedObject(0, 0)]


@pytest.fixture(scope="module", params=["deformable-detr-two-stage", "detr", "faster-rcnn"])
def model(request: pytest.FixtureRequest) -> Model:
    torch.manual_seed(0)
    return build(model_config(request.param, "small"), 2)


@pytest.mark.parametrize("mode", [True, False])
def test_watching_leaves_no_trace(model: Model, validation: CocoDetection, mode: bool) -> None:
    model.train(mode)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.get_rng_state()
    lines = [watched_line(model, validation, choose_objects(validation), 3, 30) for _ in range(2)]
    assert lines[0] == lines[1] == json.loads(json.dumps(lines[0], allow_nan=False), object_hook=_points)
    assert "error" not in lines[0]
    assert (lines[0]["epoch"], lines[0]["step"]) == (3, 30)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training == mode
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None for parameter in model.parameters())


def _points(entry: dict[str, Any]) -> dict[str, Any]:
    """JSON knows no tuples."""
    return {**entry, "points": [tuple(p) for p in entry["points"]]} if "points" in entry else entry


def test_what_is_watched(model: Model, validation: CocoDetection) -> None:
    first, second = watch(model, validation, choose_objects(validation))
    assert (first["image_id"], first["object"], second["image_id"], second["object"]) == (42, 0, 1000, 1)
    assert first["true_box"] == pytest.approx([50 / 60, 30 / 40, 1, 1], abs=1e-4)  # clipped at the border
    assert second["true_box"] == pytest.approx([0, 0, 15 / 32, 15 / 32], abs=1e-4)
    for entry in (first, second):
        if entry["box"] is not None:
            assert all(0 <= value <= 1 for value in entry["box"])
        assert 0 <= entry["score"] <= 1
        if isinstance(model, FasterRcnn):
            assert entry["points"] == []
        elif isinstance(model, Detr):  # a map of 5 × 8 and one of 4 × 4 cells, all of them noted
            columns, rows = (8, 5) if entry is first else (4, 4)
            cells = {(round(x * columns - 0.5, 2), round(y * rows - 0.5, 2)) for x, y, _ in entry["points"]}
            assert cells == {(i, j) for i in range(columns) for j in range(rows)}
            shares = [share for *_, share in entry["points"]]
            assert shares == sorted(shares, reverse=True)
            assert sum(shares) == pytest.approx(1, abs=1e-3)
        else:
            assert len(entry["points"]) == 4 * 3 * 2
            assert sum(share for *_, share in entry["points"]) == pytest.approx(1, abs=1e-3)


def test_points_of_an_untrained_model_lie_in_its_box(validation: CocoDetection) -> None:
    """It starts with offsets that reach a box's edge at most, and with heads that leave the reference box as it is."""
    torch.manual_seed(0)
    model = build(model_config("deformable-detr-two-stage", "small"), 2)
    for entry in watch(model, validation, choose_objects(validation)):
        x0, y0, x1, y1 = entry["box"]
        assert x0 > 0
        assert y0 > 0
        assert all(x0 - 1e-4 <= x <= x1 + 1e-4 and y0 - 1e-4 <= y <= y1 + 1e-4 for x, y, _ in entry["points"])
        assert max(x for x, *_ in entry["points"]) == pytest.approx(x1, abs=1e-3)


def test_the_query_is_the_one_that_covers_the_object_best(validation: CocoDetection) -> None:
    torch.manual_seed(1)
    model = build(model_config("deformable-detr", "small"), 2).eval()
    with torch.no_grad():  # else all layers would look at the same points
        for parameter in model.transformer.decoder.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    (entry,) = watch(model, validation, [WatchedObject(2, 1)])
    with torch.no_grad(), record_samples(model) as samples:
        outputs = model.outputs(model.batch([validation[2][0]]))
    corners = cxcywh_to_xyxy(outputs.boxes[-1, 0])
    query = int(generalized_box_iou(corners, torch.tensor(entry["true_box"])).argmax())
    assert entry["box"] == pytest.approx(corners[query].clamp(0, 1).tolist(), abs=1e-4)
    assert entry["score"] == pytest.approx(float(outputs.logits[-1, 0, query].sigmoid().max()), abs=1e-4)
    assert entry["label"] == int(outputs.logits[-1, 0, query].argmax())
    locations, weights = samples["transformer.decoder.layers.1.cross_attn"]
    expected = torch.cat((locations[0, query], weights[0, query, ..., None] / 4), -1).flatten(0, 2)
    torch.testing.assert_close(torch.tensor(entry["points"]), expected, atol=1e-4, rtol=0)


def test_of_the_queries_that_cover_an_object_the_surest_of_its_class_is_shown() -> None:
    """A duplicate that was turned down may cover it a little better."""
    true_box = torch.tensor([0.2, 0.2, 0.6, 0.6])
    boxes = torch.tensor([[0.2, 0.2, 0.6, 0.6], [0.2, 0.2, 0.6, 0.55], [0.2, 0.2, 0.6, 0.3], [0.7, 0.7, 0.9, 0.9]])
    assert _best(boxes, torch.tensor([0.05, 0.8, 0.9, 0.95]), true_box) == 1
    assert _best(boxes[2:], torch.tensor([0.1, 0.9]), true_box) == 0  # none covers it: the nearest


def test_watching_never_stops_a_run(validation: CocoDetection) -> None:
    model = build(model_config("detr", "small"), 2).train()
    with torch.no_grad():
        next(model.bbox_embed.parameters()).fill_(float("nan"))
    line = watched_line(model, validation, choose_objects(validation), 1, 5)
    assert line == {"epoch": 1, "step": 5, "objects": [], "error": "ValueError: the model's boxes are not finite"}
    assert model.training
