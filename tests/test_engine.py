"""Training, resuming, checkpoints, evaluation and prediction, on tiny data."""

import io
import json
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_coco
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from ddetr_lite.datasets.coco import CocoDetection, CocoFolder
from ddetr_lite.datasets.shapes import HARD, ShapesConfig, write_shapes
from ddetr_lite.datasets.transforms import AugmentConfig
from ddetr_lite.engine import checkpoint, resume_proof
from ddetr_lite.engine.data import order_of
from ddetr_lite.engine.evaluate import METRICS, ap_of, area_ranges, evaluate
from ddetr_lite.engine.log import read_log
from ddetr_lite.engine.predict import predict
from ddetr_lite.engine.recipe_checks import check
from ddetr_lite.engine.recipes import (
    Recipe,
    read_recipe,
    recipe,
    recipe_from_dict,
    recipe_names,
    recipe_to_dict,
)
from ddetr_lite.engine.resume_proof import prove
from ddetr_lite.engine.run import differing
from ddetr_lite.engine.train import train
from ddetr_lite.models.presets import ROWS, SIZES, build, config_from_dict, config_to_dict, model_config
from ddetr_lite.set_prediction.postprocess import without_repeats

TINY: Any = {"dim": 32, "heads": 2, "hidden": 32, "encoder_layers": 1, "decoder_layers": 2, "queries": 6}


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    return write_shapes(folder, ShapesConfig(size=48, min_size=0.15, train_images=20, val_images=5), progress=False)


def tiny_recipe(folder: Path, row: str = "deformable-detr-refine", **options: Any) -> Recipe:
    """A run of a few seconds with everything on: augmentation, dropout, auxiliary losses."""
    base = recipe("shapes", row)
    small: Any = {**TINY, "dropout": 0.1}
    model = replace(base.model, **{k: v for k, v in small.items() if hasattr(base.model, k)})
    augment = AugmentConfig(short_sides=(40, 48), max_side=64, eval_short_side=0, flip_vertical=True, color=True)
    settings: dict[str, Any] = {
        "epochs": 3,
        "batch": 4,
        "workers": 0,
        "checkpoint_every": 2,
        "log_every": 1,
        "evaluate_every": 2,
    }
    settings |= {"group_orientations": True, "forecast": False}
    data = replace(base.data, folder=str(folder))
    return replace(base, model=model, data=data, augment=augment, train=replace(base.train, **(settings | options)))


@pytest.mark.parametrize("row", ROWS)
def test_every_row_of_the_table_trains_evaluates_and_loads_again(shapes: Path, tmp_path: Path, row: str) -> None:
    metrics = train(tiny_recipe(shapes, row, epochs=1), tmp_path / "run", progress=False)
    assert set(METRICS) <= set(metrics)
    loaded = checkpoint.load_model(tmp_path / "run" / "best.pt")
    data = CocoDetection(CocoFolder.find(shapes, "val"))
    assert loaded.classes == data.classes
    again = evaluate(loaded.model, data, size_bands=(0.2, 0.4))
    assert again == pytest.approx(metrics, abs=1e-9)


def test_the_loss_falls_and_the_log_tells_everything(shapes: Path, tmp_path: Path) -> None:
    chosen = tiny_recipe(shapes, epochs=6, lr=1e-3, warmup_steps=1, schedule="constant")
    train(chosen, tmp_path / "run", progress=False)
    lines = read_log(tmp_path / "run" / "log.jsonl")
    start = lines[0]
    assert recipe_from_dict(start["recipe"]) == chosen
    assert start["pictures"] == 20
    assert start["steps_in_all"] == 30
    losses = [line["loss"] for line in lines if line["kind"] == "train"]
    assert len(losses) == 30
    assert np.mean(losses[-5:]) < 0.8 * np.mean(losses[:5])
    step = next(line for line in lines if line["kind"] == "train")
    parts = [value for key, value in step.items() if key.startswith("loss/")]
    assert sum(parts) == pytest.approx(step["loss"], rel=1e-4)
    assert [line["epoch"] for line in lines if line["kind"] == "evaluate"] == [2, 4, 6]


@pytest.mark.parametrize("grouped", [False, True])
def test_orientations_and_sizes_reach_the_order(shapes: Path, monkeypatch: pytest.MonkeyPatch, grouped: bool) -> None:
    monkeypatch.setattr(CocoDetection, "orientations", lambda self: [7] * len(self))
    chosen = tiny_recipe(shapes, group_orientations=grouped, one_size=grouped).train
    order = order_of(chosen, CocoDetection(CocoFolder.find(shapes, "train")))
    assert order.groups == ([7] * 20 if grouped else None)
    assert {len(key) for batch in order.epoch(0) for key in batch} == {3 if grouped else 2}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_in_an_epoch_ends_with_the_same_bits(shapes: Path, tmp_path: Path, workers: int) -> None:
    """SIGKILL in the middle of an epoch, resume, and compare all that is written with an undisturbed run."""
    proof = prove(resume_proof.tiny_recipe(tmp_path / "shapes"), tmp_path / "runs", workers, kill_at=(9,))
    assert proof.holds, str(proof)
    assert proof.steps == 24
    assert 9 <= proof.killed[0] < 24
    assert 0 < proof.resumed[0] <= proof.killed[0]
    last = checkpoint.read(tmp_path / "runs" / "killed" / "last.pt")
    assert len(last["optimizers"]) == 2  # Muon and AdamW
    assert last["average"]


def test_a_run_of_an_older_version_differs_in_nothing_that_is_new() -> None:
    """So it can be resumed: what it did not know was at its default."""
    now = recipe_to_dict(recipe("shapes"))
    before = {**now, "model": {k: v for k, v in now["model"].items() if k != "own_level"}}
    assert differing(before, now) == ""
    changed = {**now, "model": {**now["model"], "own_level": True}}
    assert differing(before, changed) == "own_level was False and is now True"


def test_the_proof_notices_a_difference(tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        folder = tmp_path / name
        folder.mkdir()
        lines = [{"kind": "train", "step": s, "loss": 1.0, "train_seconds": len(name)} for s in (1, 2, 3)]
        lines[2]["loss"] = len(name) / 6
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / "log.jsonl").write_text(text, encoding="utf-8")
        for file in ("watched.jsonl", "detections.json"):
            (folder / file).write_text(name if file == "detections.json" else "", encoding="utf-8")
        content = {"format": checkpoint.FORMAT, "seconds": len(name), "model": {"w": torch.tensor([1.0, len(name)])}}
        for file in ("last.pt", "best.pt"):
            checkpoint.write_atomically(content if file == "last.pt" else {"format": checkpoint.FORMAT}, folder / file)
    assert resume_proof._agree_to(tmp_path / "whole", tmp_path / "killed", 3) == 2
    found = list(resume_proof._differences(tmp_path / "whole", tmp_path / "killed"))
    assert found == ["last.pt: /model/w", "detections.json"]
    proof = resume_proof.Proof(2, 3, [2], [1], 2, found)
    assert not proof.holds
    assert "bit-identical to step 2 of 3; differing in the end: last.pt: /model/w" in str(proof)


def test_an_existing_run_is_not_overwritten(shapes: Path, tmp_path: Path) -> None:
    chosen = tiny_recipe(shapes, epochs=1)
    train(chosen, tmp_path, progress=False)
    with pytest.raises(ValueError, match="already holds a run"):
        train(chosen, tmp_path, progress=False)
    with pytest.raises(ValueError, match=r"another recipe: lr was 0.001 and is now 1e-05"):
        train(replace(chosen, train=replace(chosen.train, lr=1e-5)), tmp_path, resume=True, progress=False)
    # What changes nothing that is learned may be another.
    other: Any = {"workers": 1, "accumulate": 2, "log_every": 7, "checkpoint_every": 9, "forecast": True}
    train(replace(chosen, train=replace(chosen.train, **other)), tmp_path, resume=True, progress=False)
    with pytest.raises(ValueError, match="nothing to resume"):
        train(chosen, tmp_path / "other", resume=True, progress=False)


def test_checkpoints_of_half_the_size_and_broken_ones(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(replace(model_config("detr", "small"), **TINY), 2).eval()
    checkpoint.save_model(tmp_path / "full.pt", model, ["a", "b"], {"note": "x"})
    checkpoint.save_model(tmp_path / "half.pt", model, ["a", "b"], {}, half=True)
    full, half = (checkpoint.load_model(tmp_path / f"{n}.pt") for n in ("full", "half"))
    assert full.about == {"note": "x"}
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), full.model.state_dict().values()))
    assert all(p.dtype == torch.float32 for p in half.model.parameters())
    assert (tmp_path / "half.pt").stat().st_size < 0.6 * (tmp_path / "full.pt").stat().st_size
    assert not list(tmp_path.glob(".*"))  # no unfinished neighbours
    with pytest.raises(FileNotFoundError, match=r"none\.pt does not exist"):
        checkpoint.load_model(tmp_path / "none.pt")
    (tmp_path / "text.pt").write_text("hello", encoding="utf-8")
    with pytest.raises(ValueError, match=r"text\.pt is no checkpoint"):
        checkpoint.load_model(tmp_path / "text.pt")
    torch.save({"model": {}}, tmp_path / "official.pt")
    with pytest.raises(ValueError, match="ddetr-lite convert"):
        checkpoint.load_model(tmp_path / "official.pt")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"config": None}, "'config' does not fit this version: "),
        ({"config": {"architecture": "yolo"}}, "'config' does not fit this version: architecture 'yolo' is unknown"),
        (
            {"config": {"architecture": "detr", "colour": 1}},
            "DetrConfig has no field 'colour'.*the version that wrote it",
        ),
        ({"config": {"architecture": "detr"}}, r"the tensors do not fit .*Missing key\(s\) .{,400} \.\.\.$"),
        ({"classes": ...}, "lacks 'classes', which each checkpoint has"),
        ({"config": ...}, "lacks 'config'"),
        ({"about": ...}, "lacks 'about'"),
    ],
)
def test_a_checkpoint_that_does_not_fit_is_named_with_its_field(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    """...: the field is not there."""
    model = build(replace(model_config("detr", "small"), **TINY), 2)
    content = checkpoint.model_content(model, ["a", "b"], {}) | change
    checkpoint.write_atomically({k: v for k, v in content.items() if v is not ...}, tmp_path / "other.pt")
    with pytest.raises(ValueError, match=rf"other\.pt.*{said}"):
        checkpoint.load_model(tmp_path / "other.pt")


def test_a_failed_write_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "last.pt"
    checkpoint.write_atomically({"format": checkpoint.FORMAT, "n": 1}, path)
    with pytest.raises(Exception, match="pickle"):
        checkpoint.write_atomically({"n": lambda: None}, path)
    assert checkpoint.read(path)["n"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["last.pt"]


@pytest.mark.parametrize("name", recipe_names())
@pytest.mark.parametrize("row", ROWS)
def test_recipes_survive_a_file(name: str, row: str) -> None:
    chosen = recipe(name, row)
    check(chosen)
    assert recipe_from_dict(json.loads(json.dumps(recipe_to_dict(chosen)))) == chosen


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "Expecting property name"),
        ("[]", "the recipe is not whole: "),
        ('{"data": {}}', "the recipe is not whole: it lacks 'model'"),
        ('{"model": {"architecture": "yolo"}}', "'yolo' is unknown"),
        ("", "Expecting value"),
    ],
)
def test_a_recipe_that_cannot_be_read_is_named(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "recipe.json").write_text(text, encoding="utf-8")
    with pytest.raises(
        ValueError, match=rf"recipe\.json cannot be used: .*{said}.*; restore it.*--start-from .*best\.pt"
    ):
        read_recipe(tmp_path / "recipe.json")


def test_the_hard_recipe_has_queries_to_spare_and_bands_of_a_third_each(tmp_path: Path) -> None:
    """More queries than the size's own, in this recipe alone, and nothing else about the models is different."""
    for row in ROWS:
        model, usual = recipe("shapes-hard", row).model, model_config(row, "small")
        spare = {} if row == "faster-rcnn" else {"queries": 40}
        assert config_to_dict(model) == {**config_to_dict(usual), **spare}
        assert recipe("shapes", row).model == usual
    few = replace(HARD, train_images=1, val_images=60)
    data = CocoDetection(CocoFolder.find(write_shapes(tmp_path / "hard", few, progress=False), "val"))
    areas = np.array([annotation["area"] for objects in data.annotations for annotation in objects])
    _, *bands = area_ranges(data, recipe("shapes-hard").data.size_bands)
    shares = [np.mean((low <= areas) & (areas < high)) for low, high in bands]
    assert shares == pytest.approx([1 / 3] * 3, abs=0.07)


def test_configurations_survive_a_checkpoint_and_reject_other_versions() -> None:
    for size in SIZES:
        for row in ROWS:
            config = model_config(row, size)  # type: ignore[arg-type]
            assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config
    with pytest.raises(ValueError, match="no field 'colour'"):
        config_from_dict({**config_to_dict(model_config("detr")), "colour": 1})


@pytest.mark.parametrize(
    ("part", "values", "message"),
    [
        ("train", {"epochs": 0}, "epochs=0"),
        ("train", {"lr": 3.0}, "lr=3.0"),
        ("train", {"workers": -1}, "workers=-1"),
        ("data", {"size_bands": (5.0, 2.0)}, r"size_bands=\(5.0, 2.0\) must be positive and rising"),
        ("data", {"size_bands": (0.2, 1.0)}, r"size_bands=\(0.2, 1.0\): give both in pixels, or both below 1"),
        ("model", {"queries": 0}, "queries=0"),
    ],
)
def test_values_that_cannot_be_meant(shapes: Path, part: str, values: dict[str, Any], message: str) -> None:
    chosen = tiny_recipe(shapes)
    with pytest.raises(ValueError, match=message):
        check(replace(chosen, **{part: replace(getattr(chosen, part), **values)}))


def _coco_data(tmp_path: Path) -> CocoDetection:
    annotations = tiny_coco.content()
    annotations["annotations"] = [a for a in annotations["annotations"] if a["bbox"][2] > 0]
    return CocoDetection(CocoFolder.find(tiny_coco.write(tmp_path, annotations), "val"))


def test_ap_equals_pycocotools_on_the_files(tmp_path: Path) -> None:
    """The same numbers as pycocotools gives when it reads annotations and results from files."""
    data = _coco_data(tmp_path)
    generator = torch.Generator().manual_seed(1)
    detections, results = {}, []
    for image, objects in zip(data.images, data.annotations):
        boxes, scores, labels = [], [], []
        for annotation in objects:
            x, y, w, h = annotation["bbox"]
            for _ in range(3):
                jitter = torch.randn(4, generator=generator) * 2
                boxes.append([x + jitter[0], y + jitter[1], x + w + jitter[2], y + h + jitter[3]])
                scores.append(float(torch.rand((), generator=generator)))
                labels.append(data.label_of_category[annotation["category_id"]])
        corners = torch.tensor(boxes).reshape(-1, 4)
        detections[image["id"]] = {"boxes": corners, "scores": torch.tensor(scores), "labels": torch.tensor(labels)}
        categories = {v: k for k, v in data.label_of_category.items()}
        for (x0, y0, x1, y1), score, label in zip(corners.tolist(), scores, labels):
            entry = {"image_id": image["id"], "category_id": categories[label], "score": score}
            results.append({**entry, "bbox": [x0, y0, x1 - x0, y1 - y0]})
    truth = json.loads(data.folder.annotations.read_text(encoding="utf-8"))
    for annotation in truth["annotations"]:
        annotation.setdefault("iscrowd", 0)
    (tmp_path / "truth.json").write_text(json.dumps(truth), encoding="utf-8")
    (tmp_path / "results.json").write_text(json.dumps(results), encoding="utf-8")
    with redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "truth.json"))
        evaluation = COCOeval(coco, coco.loadRes(str(tmp_path / "results.json")), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    found = ap_of(detections, data)
    assert [found[name] for name in METRICS] == pytest.approx(list(evaluation.stats[:6]), abs=1e-6)
    assert 0.05 < found["AP"] < 0.95  # neither trivial case


def test_ap_of_nothing_and_of_the_truth(tmp_path: Path) -> None:
    data = _coco_data(tmp_path)
    empty = {"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.int64)}
    assert ap_of({image["id"]: empty for image in data.images}, data)["AP"] == 0
    assert ap_of({}, data)["AP"] == 0
    perfect = {}
    for image, objects in zip(data.images, data.annotations):
        own = [a for a in objects if not a.get("iscrowd")]
        xywh = torch.tensor([a["bbox"] for a in own], dtype=torch.float32).reshape(-1, 4)
        perfect[image["id"]] = {
            "boxes": torch.cat((xywh[:, :2], xywh[:, :2] + xywh[:, 2:]), dim=1),
            "scores": torch.ones(len(own)),
            "labels": torch.tensor([data.label_of_category[a["category_id"]] for a in own], dtype=torch.int64),
        }
    assert ap_of(perfect, data)["AP"] == pytest.approx(1)
    assert ap_of(perfect, data)["AP/car"] == pytest.approx(1)


def test_size_bands_relative_to_the_picture(shapes: Path, tmp_path: Path) -> None:
    data = CocoDetection(CocoFolder.find(shapes, "val"))
    model = build(replace(model_config("detr", "small"), **TINY), len(data.classes))
    assert evaluate(model, data, (0.2, 0.4)) == evaluate(model, data, (0.2 * 48, 0.4 * 48))
    with pytest.raises(ValueError, match="pictures differ in size"):
        ap_of({}, _coco_data(tmp_path), (0.2, 0.4))


def test_prediction_is_in_pixels_of_the_given_picture(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build(replace(model_config("detr", "small"), **TINY), 2).eval()
    about = {"recipe": {"augment": {"eval_short_side": 48, "max_side": 100}}}
    checkpoint.save_model(tmp_path / "m.pt", model, ["a", "b"], about)
    loaded = checkpoint.load_model(tmp_path / "m.pt")
    pixels = torch.randint(0, 256, (3, 96, 144), dtype=torch.uint8)
    found = predict(loaded, pixels, threshold=0.0)
    assert len(found) == 6
    assert [f.score for f in found] == sorted((f.score for f in found), reverse=True)
    wide = predict(loaded, pixels.repeat_interleave(2, 1).repeat_interleave(2, 2), threshold=0.0)
    for a, b in zip(found, wide):
        assert b.box == pytest.approx([2 * x for x in a.box], abs=3)
    assert predict(loaded, pixels, threshold=1.0) == []


def _val(tmp_path: Path, content: dict[str, Any]) -> CocoDetection:
    return CocoDetection(CocoFolder.find(tiny_coco.write(tmp_path, content), "val"))


def _two_cars(tmp_path: Path) -> CocoDetection:
    """Two cars in picture 42, 20 pixels apart, and nothing else."""
    content = tiny_coco.content()
    boxes = [[20, 5, 10, 10], [40, 5, 10, 10]]
    content["annotations"] = [
        {"id": i, "image_id": 42, "category_id": 3, "bbox": box, "area": 100} for i, box in enumerate(boxes, 1)
    ]
    return _val(tmp_path, content)


def test_shares_of_a_side_are_of_the_root_of_the_area(tmp_path: Path) -> None:
    content = tiny_coco.content()
    content["annotations"] = []
    for image in content["images"]:
        image["height"], image["width"] = 16, 64
    assert area_ranges(_val(tmp_path, content), (0.25, 0.5)) == [[0, 1e10], [0, 64], [64, 256], [256, 1e10]]


def test_ap_of_a_class_counts_all_its_detections(tmp_path: Path) -> None:
    """Two cars in one picture, both found."""
    found = {
        "boxes": torch.tensor([[20.0, 5, 30, 15], [40, 5, 50, 15]]),
        "scores": torch.tensor([0.9, 0.8]),
        "labels": torch.tensor([0, 0]),
    }
    metrics = ap_of({42: found}, _two_cars(tmp_path))
    assert metrics["AP"] == metrics["AP/car"] == pytest.approx(1)
    assert metrics["AP/brush"] == -1


def test_the_size_of_an_object_is_the_area_of_its_annotation(tmp_path: Path) -> None:
    content = tiny_coco.content()
    content["annotations"] = [{"id": 1, "image_id": 42, "category_id": 3, "bbox": [5, 5, 50, 30], "area": 900}]
    one = {"boxes": torch.tensor([[5.0, 5, 55, 35]]), "scores": torch.tensor([0.9]), "labels": torch.tensor([0])}
    metrics = ap_of({42: one}, _val(tmp_path, content))
    assert metrics["AP_small"] == pytest.approx(1)
    assert metrics["AP_medium"] == -1


@pytest.mark.parametrize("training", [True, False])
def test_an_evaluation_leaves_the_models_mode(tmp_path: Path, training: bool) -> None:
    torch.manual_seed(0)
    model = build(model_config("detr", "small"), 2).train(training)
    evaluate(model, _coco_data(tmp_path))
    assert model.training == training


@pytest.mark.parametrize(
    ("augment", "size"),
    [({"eval_short_side": 48, "max_side": 100}, (48, 72)), ({"eval_short_side": 0}, (96, 144)), ({}, (800, 1200))],
)
def test_a_picture_is_resized_as_the_checkpoint_says(
    tmp_path: Path, augment: dict[str, int], size: tuple[int, int]
) -> None:
    plain: Any = model_config("detr", "small")
    config = replace(plain, dim=16, heads=2, hidden=16, encoder_layers=0, decoder_layers=1)
    checkpoint.save_model(tmp_path / "m.pt", build(config, 2), ["a", "b"], {"recipe": {"augment": augment}})
    loaded = checkpoint.load_model(tmp_path / "m.pt")
    assert not loaded.model.training
    seen = []
    loaded.model.register_forward_pre_hook(lambda module, given: seen.append(tuple(given[0][0].shape[1:])))
    predict(loaded, torch.zeros(3, 96, 144, dtype=torch.uint8))
    assert seen == [size]


def test_repeats_cost_ap_unless_they_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {
        "boxes": torch.tensor([[20.0, 5, 30, 15], [21, 5, 31, 15], [40, 5, 50, 15], [21, 5, 31, 15]]),
        "scores": torch.tensor([0.9, 0.8, 0.7, 0.6]),
        "labels": torch.tensor([0, 0, 0, 1]),
    }
    left = without_repeats(found, 0.5)
    assert left["scores"].tolist() == found["scores"][[0, 2, 3]].tolist()  # of another class it is no repeat
    monkeypatch.setattr("ddetr_lite.engine.evaluate.detect", lambda *given, **options: [(42, found)])
    data, model = _two_cars(tmp_path), build(replace(model_config("detr", "small"), **TINY), 2)
    plain, without = (evaluate(model, data, nms=nms)["AP/car"] for nms in (None, 0.5))
    assert plain < 0.9
    assert without == pytest.approx(1)
