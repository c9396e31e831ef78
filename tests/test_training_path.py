"""What surrounds the loop: skipped steps, running average, fine-tuning, forecast, profile, decoded pictures, and shares."""

import itertools
import json
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_coco
import torch
from PIL import Image
from test_engine import TINY, tiny_recipe
from torchvision import tv_tensors

from ddetr_lite.batching import IMAGENET_MEAN, IMAGENET_STD, RawBatch, batch_images
from ddetr_lite.cli.training import _followed, _now_and_then, _with_options
from ddetr_lite.datasets import picture_cache
from ddetr_lite.datasets.coco import CocoDetection, CocoFolder
from ddetr_lite.datasets.loading import Batch, EpochSampler, Order, RunSampler, evaluation_batches
from ddetr_lite.datasets.picture_cache import PictureCache
from ddetr_lite.datasets.pictures import picture_size, read_picture
from ddetr_lite.datasets.shapes import ShapesConfig, write_shapes
from ddetr_lite.datasets.transforms import AugmentConfig, SizeDraw, eval_transform, train_transform
from ddetr_lite.engine import checkpoint
from ddetr_lite.engine.average import average_of, update_average
from ddetr_lite.engine.data import datasets, order_of, size_to_keep
from ddetr_lite.engine.distributed import World
from ddetr_lite.engine.errors import best_threshold, find_errors, threshold_of
from ddetr_lite.engine.evaluate import ap_of, detect, evaluate, validation_set
from ddetr_lite.engine.fine_tuning import recipe_for, start_from
from ddetr_lite.engine.forecast import Forecast, forecast, largest
from ddetr_lite.engine.guard import Guard
from ddetr_lite.engine.log import RunLog, read_log
from ddetr_lite.engine.optimization import make_optimizers
from ddetr_lite.engine.overfitting import as_overfitting, verdict
from ddetr_lite.engine.predict import predict, threshold_for
from ddetr_lite.engine.profile import profile
from ddetr_lite.engine.recipe_checks import check
from ddetr_lite.engine.recipes import DataConfig, recipe, recipe_from_dict, recipe_to_dict
from ddetr_lite.engine.run import NUMBERS, State, differing
from ddetr_lite.engine.run_results import read_run
from ddetr_lite.engine.scaling import follow, oddities
from ddetr_lite.engine.step import Step, compile_layers, use_bf16
from ddetr_lite.engine.train import Run, train
from ddetr_lite.models.backbone import BackboneConfig
from ddetr_lite.models.presets import build, model_config
from ddetr_lite.wording import duration

ALONE = World(torch.device("cpu"))


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    return write_shapes(folder, ShapesConfig(size=48, min_size=0.15, train_images=20, val_images=5), progress=False)


def small_model(row: str, classes: int, seed: int = 0, sizes: dict[str, Any] = TINY, **change: Any) -> Any:
    """sizes: those that its configuration does not know are left out. change: of any field."""
    torch.manual_seed(seed)
    config: Any = model_config(row, "small")
    return build(
        replace(config, **{k: v for k, v in sizes.items() if hasattr(config, k)}, **change),
        classes,
        load_backbone=False,
    )


# ---------------------------------------------------------------- steps without a finite gradient


class Poison:
    """Makes the class logits NaN (in the forward pass) or their gradient (in the backward pass) at chosen steps."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, steps: set[int], backward: bool):
        self.step = -1
        from ddetr_lite.models.detr import Detr

        original = Detr.outputs

        def outputs(model: Any, batch: Any, targets: Any = None) -> Any:
            found = original(model, batch, targets)
            if not model.training:
                return found
            self.step += 1
            if self.step not in steps:
                return found
            if backward:
                boxes = found.boxes.clone()
                boxes.register_hook(lambda gradient: gradient * float("inf"))
                return found._replace(boxes=boxes)
            return found._replace(logits=found.logits * float("nan"))

        monkeypatch.setattr(Detr, "outputs", outputs)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_step_without_a_finite_gradient_is_skipped_and_named(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backward: bool, optimizer: str
) -> None:
    chosen = tiny_recipe(
        shapes, "detr", epochs=1, optimizer=optimizer, evaluate_every=0, checkpoint_every=100, log_every=2, ema=0.9
    )
    Poison(monkeypatch, {1, 4}, backward)
    train(chosen, tmp_path / "run", progress=False)
    skipped = [line for line in read_log(tmp_path / "run" / "log.jsonl") if line["kind"] == "skip"]
    assert [line["step"] for line in skipped] == [2, 5]
    assert all(len(line["pictures"]) == 4 for line in skipped)
    wanted = "gradient is not finite" if backward else "matching cost of picture with image id"
    assert all(wanted in line["reason"] for line in skipped)
    state = checkpoint.read(tmp_path / "run" / "last.pt")
    assert all(v.isfinite().all() for v in state["model"].values() if v.is_floating_point())
    assert all(v.isfinite().all() for v in state["average"].values() if v.is_floating_point())
    logged = [line["step"] for line in read_log(tmp_path / "run" / "log.jsonl") if line["kind"] == "train"]
    assert logged == [4]  # of steps 2 and 4 the first was skipped


def test_a_skipped_step_changes_nothing(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Poisoned from its third step on, a run keeps the weights and the optimizer's state of the first two."""
    options: dict[str, Any] = {"evaluate_every": 0, "checkpoint_every": 100, "epochs": 1, "schedule": "constant"}
    with monkeypatch.context() as patch:
        Poison(patch, {2, 3, 4}, backward=True)
        train(tiny_recipe(shapes, "detr", **options), tmp_path / "poisoned", progress=False)
    with monkeypatch.context() as patch:
        Poison(patch, {2}, backward=True)
        stop = tiny_recipe(shapes, "detr", **{**options, "max_bad_steps": 1, "log_every": 1})
        with pytest.raises(FloatingPointError, match=r"1 steps in a row .*--start-from .*last\.pt, with a lower --lr"):
            train(stop, tmp_path / "stopped", progress=False)
    a, b = (checkpoint.read(tmp_path / name / "last.pt") for name in ("poisoned", "stopped"))
    assert (a["step"], b["step"]) == (5, 3)
    runs = [read_run(tmp_path / name) for name in ("poisoned", "stopped")]
    assert [run.diverged for run in runs] == [False, True]
    assert "not finite" in runs[1].lines[-1]["reason"]
    assert all(torch.equal(value, b["model"][name]) for name, value in a["model"].items())
    for mine, theirs in zip(a["optimizers"], b["optimizers"], strict=True):
        for key, state in mine["state"].items():
            assert all(torch.equal(value, theirs["state"][key][name]) for name, value in state.items())


def test_a_skipped_step_leaves_batch_norms_alone() -> None:
    """One picture of NaN would be in the running mean for ever."""
    torch.manual_seed(0)
    config: Any = model_config("detr", "small")
    small = {k: v for k, v in TINY.items() if hasattr(config, k)}
    model: Any = build(replace(config, backbone=BackboneConfig("mobilenet_v2", frozen=False), stride=32, **small), 2)
    step = Step(State(model.train(), make_optimizers(model, recipe("coco").train), None), recipe("coco").train, ALONE)
    piece = Batch.of([(torch.zeros(3, 64, 64, dtype=torch.uint8), _target([[1.0, 2, 30, 29]]))])
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.mean.fill_(float("nan"))
    step([piece], 1e-4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model.mean.copy_(torch.tensor(IMAGENET_MEAN))
    step([piece], 1e-4)
    assert any(not torch.equal(value, before[name]) for name, value in model.state_dict().items() if "running" in name)
    assert all(value.isfinite().all() for value in model.state_dict().values() if value.is_floating_point())


def test_the_guard_counts_steps_in_a_row() -> None:
    guard = Guard(ALONE)
    for step, norm in enumerate((1.0, float("nan"), 2.0, float("inf"), float("nan"))):
        guard.watch(step, [step], "", torch.tensor(norm), [])
    skipped, row = guard.look(0)
    assert [s.step for s in skipped] == [1, 3, 4]
    assert row == 2
    guard.watch(5, [5], "", torch.tensor(float("nan")), [])
    assert guard.look(row)[1] == 3
    guard.watch(6, [6], "", torch.tensor(1.0), [])
    assert guard.look(3) == ([], 0)


# ---------------------------------------------------------------- the running average


def test_the_average_equals_a_loop_over_the_weights() -> None:
    torch.manual_seed(0)
    model: Any = torch.nn.Linear(3, 2)
    average: Any = average_of(model, 0.5)
    expected, first = model.weight.detach().clone(), True
    for count in range(6):
        with torch.no_grad():
            model.weight.add_(torch.randn_like(model.weight))
        update_average(average, model, 0.5)
        decay = min(0.5, (1 + count) / (10 + count))
        expected = model.weight.detach().clone() if first else decay * expected + (1 - decay) * model.weight.detach()
        first = False
        assert torch.allclose(average.module.weight, expected, atol=1e-6)
    assert average_of(model, 0.0) is None


def test_statistics_of_batch_norms_are_averaged_too() -> None:
    model: Any = torch.nn.BatchNorm1d(2)
    average: Any = average_of(model, 0.5)
    for value in (1.0, 3.0):
        model.running_mean.fill_(value)
        model.num_batches_tracked.fill_(int(value))
        update_average(average, model, 0.5)
    assert torch.allclose(average.module.running_mean, torch.full((2,), 3 - 2 * 2 / 11))
    assert int(average.module.num_batches_tracked) == 3  # a count has no average


def test_best_pt_holds_the_average(shapes: Path, tmp_path: Path) -> None:
    train(tiny_recipe(shapes, "detr", epochs=2, ema=0.5), tmp_path / "run", progress=False)
    last = checkpoint.read(tmp_path / "run" / "last.pt")
    best = checkpoint.read(tmp_path / "run" / "best.pt")["model"]
    name = "class_embed.weight"
    assert torch.equal(best[name], last["average"][f"module.{name}"])
    assert not torch.equal(best[name], last["model"][name])


# ---------------------------------------------------------------- fine-tuning


@pytest.mark.parametrize("row", ["detr", "deformable-detr", "deformable-detr-two-stage", "faster-rcnn"])
def test_fine_tuning_keeps_what_classes_share(tmp_path: Path, row: str) -> None:
    source, model = small_model(row, 3, seed=1), small_model(row, 4, seed=2)
    fresh = {k: v.clone() for k, v in model.state_dict().items()}
    checkpoint.save_model(tmp_path / "source.pt", source, ["cat", "dog", "cow"], {})
    said = start_from(model, ["dog", "owl", "cat", "bat"], tmp_path / "source.pt")
    assert "knows 2 of the 4 classes: the heads of 2 (owl, bat) are made anew" in said
    old, new = source.state_dict(), model.state_dict()
    heads = [k for k in new if k.startswith(("class_embed", "roi_heads.box_predictor"))]
    assert all(torch.equal(new[k], old[k]) for k in new if k not in heads)
    encoder = f"class_embed.{model.config.decoder_layers}." if "two-stage" in row else "none"
    for key in heads:
        if key.startswith(encoder):
            assert torch.equal(new[key][0], old[key][0])  # any object
            continue
        background = 1 if row == "faster-rcnn" else 0
        each = 4 if "bbox_pred" in key else 1
        mine, theirs, before = (t[key].view(-1, each, *t[key].shape[1:]) for t in (new, old, fresh))
        for i, j in ((0, 1), (2, 0)):  # dog, cat
            assert torch.equal(mine[i + background], theirs[j + background]), key
        for i in (1, 3):
            assert torch.equal(mine[i + background], before[i + background]), key
        if row == "detr":
            assert torch.equal(mine[-1], theirs[-1])  # no object
        if row == "faster-rcnn":
            assert torch.equal(mine[0], theirs[0])


def test_fine_tuning_with_the_same_classes_and_with_another_model(tmp_path: Path) -> None:
    source = small_model("deformable-detr", 2, seed=1)
    checkpoint.save_model(tmp_path / "source.pt", source, ["cat", "dog"], {})
    model = small_model("deformable-detr", 2, seed=2)
    assert "all weights carry over" in start_from(model, ["cat", "dog"], tmp_path / "source.pt")
    assert all(torch.equal(v, source.state_dict()[k]) for k, v in model.state_dict().items())
    with pytest.raises(ValueError, match="holds a DeformableDetr, the recipe a Detr: leave --model out"):
        start_from(small_model("detr", 2), ["cat", "dog"], tmp_path / "source.pt")
    other: Any = model_config("deformable-detr", "small")
    with pytest.raises(
        ValueError, match="was made with queries=6, this recipe says 7: use the checkpoint's, since queries are weights"
    ):
        start_from(build(replace(other, **{**TINY, "queries": 7}), 2), ["cat"], tmp_path / "source.pt")


def test_more_objects_than_a_checkpoint_has_queries(shapes: Path, tmp_path: Path) -> None:
    """Two stages make as many queries as they are told to; those that are learned are weights, and as many as they are."""
    for row, remedy in (
        ("deformable-detr-two-stage", r"only 2 queries: train with --queries \d+ or more$"),
        ("deformable-detr", r"either leave out such pictures, or train with --queries \d+ or more and without --start"),
    ):
        chosen = tiny_recipe(shapes, row, start_from=str(tmp_path / f"{row}.pt"), epochs=1)
        classes = CocoDetection(CocoFolder.find(shapes, "train")).classes
        few = replace(chosen, model=replace(chosen.model, queries=2))  # type: ignore[arg-type]
        checkpoint.save_model(tmp_path / f"{row}.pt", build(few.model, len(classes)), classes, {})
        with pytest.raises(ValueError, match=remedy):
            train(few, tmp_path / row, progress=False)
        if row == "deformable-detr-two-stage":
            assert train(chosen, tmp_path / row, progress=False)["AP"] >= 0


def test_a_fine_tuned_run_begins_where_the_checkpoint_ended(shapes: Path, tmp_path: Path) -> None:
    options: dict[str, Any] = {"lr": 1e-6, "optimizer": "adamw", "epochs": 1, "warmup_steps": 0}
    first = tiny_recipe(shapes, "detr", **{**options, "lr": 1e-3, "epochs": 3})
    train(first, tmp_path / "first", progress=False)
    source = tmp_path / "first" / "last.pt"
    train(tiny_recipe(shapes, "detr", **options, start_from=str(source)), tmp_path / "second", progress=False)
    before, after = (checkpoint.read(p)["model"] for p in (source, tmp_path / "second" / "last.pt"))
    assert all(torch.allclose(after[k], v, atol=1e-4) for k, v in before.items() if v.is_floating_point())


# ---------------------------------------------------------------- forecast, profile, what follows


def test_the_forecast_changes_nothing(shapes: Path, tmp_path: Path) -> None:
    for name, wanted in (("with", True), ("without", False)):
        train(tiny_recipe(shapes, epochs=1, forecast=wanted), tmp_path / name, progress=False)
    a, b = (checkpoint.read(tmp_path / name / "last.pt")["model"] for name in ("with", "without"))
    assert all(torch.equal(v, b[k]) for k, v in a.items())
    line = next(line for line in read_log(tmp_path / "with" / "log.jsonl") if line["kind"] == "forecast")
    assert line["steps"] == 5
    assert line["step_seconds"] > 0
    assert line["seconds"] > 5 * line["step_seconds"]


def test_the_forecast_leaves_batch_norms_and_gradients_alone(shapes: Path) -> None:
    chosen = tiny_recipe(shapes, "detr")
    backbone = BackboneConfig("mobilenet_v2", frozen=False)  # whose batch norms count what they see
    config: Any = chosen.model
    chosen = replace(chosen, model=replace(config, backbone=backbone, stride=32))
    training, validation = datasets(chosen, ALONE)
    model = build(chosen.model, len(training.classes))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step = Step(State(model, [], None), chosen.train, ALONE)
    expected = forecast(chosen, step, training, len(validation), order_of(chosen.train, training))
    assert expected.steps == 15
    odd = replace(chosen, train=replace(chosen.train, epochs=5, evaluate_every=2))
    found = forecast(odd, step, training, len(validation), order_of(odd.train, training))
    assert found.evaluations == 3  # after epochs 2, 4 and 5
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training


def test_the_forecast_in_words() -> None:
    known = Forecast(3500, 0.2, 0.05, 2, 6, 10.0, 0, 0)
    assert replace(known, workers=0).seconds == 3500 * 0.25 + 60  # nobody loads while the model computes
    assert str(known) == "Forecast: 3,500 steps of 200 ms and 6 evaluations, about 13 min."
    slow = replace(known, loading_seconds=0.4, peak_bytes=int(12.3e9), device_bytes=int(80e9))
    assert "12.3 of 80 GB" in str(slow)
    assert "more --workers, or --cache memory" in str(slow)
    assert slow.seconds == 3500 * 0.4 + 60
    assert [duration(s) for s in (40, 700, 12000)] == ["40 s", "12 min", "3 h 20 min"]


def test_the_largest_batch_is_as_large_as_training_can_make_it() -> None:
    batch = Batch.of([(torch.zeros(3, 30, 40, dtype=torch.uint8), _target([[1.0, 2, 39, 29]])) for _ in range(2)])
    grown = largest(batch, AugmentConfig(short_sides=(64, 80), eval_short_side=96, max_side=120, crop=False))
    assert grown.images.pixels.shape == (2, 3, 120, 120)
    wide = largest(batch, AugmentConfig())  # one picture may be 16 : 9, another 9 : 16
    assert wide.images.pixels.shape[2] == wide.images.pixels.shape[3] >= 1333
    alone = largest(
        Batch.of([(torch.zeros(3, 30, 40, dtype=torch.uint8), _target([[1.0, 2, 39, 29]]))]), AugmentConfig()
    )
    assert alone.images.pixels.shape == (1, 3, 800, 1333)
    assert (grown.boxes[:, 2:] > grown.boxes[:, :2]).all()


def _target(boxes: list[list[float]]) -> dict[str, torch.Tensor]:
    return {
        "boxes": torch.tensor(boxes), "labels": torch.zeros(len(boxes), dtype=torch.int64),
        "image_id": torch.tensor(1), "original_size": torch.tensor((30, 40)),
    }  # fmt: skip


def test_the_profile_names_every_part(shapes: Path) -> None:
    found = profile(tiny_recipe(shapes), steps=2)
    parts = ["waiting for pictures", "copying, normalising", "backbone", "encoder", "queries", "decoder"]
    assert list(found.parts) == [*parts, "heads, matching, losses", "backward", "update"]
    assert all(value > 0 for value in found.parts.values())
    assert len(found.lines()) >= 11
    in_pieces = profile(tiny_recipe(shapes, accumulate=2), steps=2)
    assert in_pieces.parts["backward"] > in_pieces.parts["copying, normalising"]
    waits = replace(found, parts={**found.parts, "waiting for pictures": 1e6})
    assert "waits for pictures" in waits.advice()


def test_learning_rate_and_drop_follow_batch_and_epochs() -> None:
    base = recipe("coco")
    larger = replace(base, train=replace(base.train, batch=128))
    found, reasons = follow(larger, base, {"batch"})
    assert found.train.lr == pytest.approx(2 * base.train.lr)
    assert "√(128/32)" in reasons[0]
    assert follow(larger, base, {"batch", "lr"}) == (larger, [])
    short = replace(base, train=replace(base.train, epochs=10))
    found, reasons = follow(short, base, {"epochs"})
    assert found.train.drop_epoch == 8
    assert len(reasons) == 1
    assert follow(short, base, {"epochs", "drop_epoch"}) == (short, [])
    assert follow(base, base, set()) == (base, [])
    for epochs, drop in ((2, 1), (1, base.train.drop_epoch)):  # the rate drops before the end, or nothing is said of it
        few = replace(base, train=replace(base.train, epochs=epochs))
        found, reasons = follow(few, base, {"epochs"})
        assert (found.train.drop_epoch, len(reasons)) == (drop, int(epochs > 1))


def test_curves_are_drawn_now_and_then(tmp_path: Path) -> None:
    drawn: list[Path] = []
    often, always = _now_and_then(drawn.append, pause=1000), _now_and_then(drawn.append, pause=0)
    for _ in range(3):
        often(tmp_path)
    assert len(drawn) == 1
    for _ in range(3):
        always(tmp_path)
    assert len(drawn) == 4


def test_overfitting_says_nothing_of_a_drop() -> None:
    chosen, reasons = _followed(replace(recipe("coco"), data=DataConfig(overfit=8),
                                        train=replace(recipe("coco").train, epochs=20)),
                                recipe("coco"), ["--overfit", "8", "--epochs", "20"])  # fmt: skip
    assert chosen.train.schedule == "constant"
    assert not any("drops" in reason for reason in reasons)


@pytest.mark.parametrize(
    ("name", "row", "words", "said"),
    [
        ("shapes", None, "--drop-epoch 3", ["--drop-epoch is looked at only with --schedule step."]),
        ("shapes", None, "--drop-epoch 3 --schedule step", []),
        ("coco", None, "--drop_epoch=3 --muon-lr 0.01", ["--muon-lr is looked at only with --optimizer muon."]),
        ("shapes", None, "--muon-lr 0.01 --muon-weight-decay 0.1", []),
        (
            "shapes",
            None,
            "--crop --one-size --max-side 200",
            [
                "--crop is looked at only where pictures are resized in training (--short-sides).",
                "--one-size is looked at only where pictures are resized in training (--short-sides).",
                "--max-side is looked at only where pictures are resized (--short-sides, --eval-short-side).",
            ],
        ),
        ("shapes", None, "--no-crop --eval-short-side 96 --max-side 200", []),
        ("coco", None, "--crop --one-size --max-side 1000", []),
        ("coco", None, "--anchor-size 0.1", ["--anchor-size is looked at only in a model with --two-stage."]),
        ("coco", None, "--anchor-size 0.1 --two-stage", []),
        ("shapes", "detr", "--sampling-lr 0.5", ["--sampling-lr is looked at only in Deformable DETR."]),
        ("shapes", None, "--sampling-lr 0.5", []),
        ("shapes", None, "", []),
    ],
)
def test_options_that_change_nothing_are_said(name: str, row: str | None, words: str, said: list[str]) -> None:
    base = recipe(name, row)
    chosen, reasons = _followed(_with_options(base, words.split()), base, words.split())
    assert reasons == said
    check(chosen)


def test_what_is_seldom_meant_is_said() -> None:
    base = recipe("coco")
    assert oddities(base, 100_000) == []
    for name, value, steps, wanted in (
        ("warmup_steps", 200, 150, "only 150 steps: its learning rate never rises to 0.0002"),
        ("drop_epoch", 50, 1000, "the learning rate never drops"),
        ("drop_epoch", 0, 1000, "a tenth of 0.0002 from the first step on"),
        ("evaluate_every", 60, 1000, "evaluated only at the end"),
        ("ema", 0.9999, 1000, "averages over about 10000 steps, the run has 1000"),
    ):
        changed: dict[str, Any] = {name: value}
        (said,) = oddities(replace(base, train=replace(base.train, **changed)), steps)
        assert wanted in said
    trained = replace(recipe("shapes"), train=replace(recipe("shapes").train, backbone_lr=0.0))
    assert any("its batch norms go on counting; --backbone.frozen" in said for said in oddities(trained, 10**6))


def test_overfitting_looks_at_the_same_pictures_as_they_are(shapes: Path) -> None:
    chosen = tiny_recipe(shapes)
    chosen = as_overfitting(replace(chosen, data=replace(chosen.data, overfit=3)))
    training, validation = datasets(chosen, ALONE)
    assert len(training) == len(validation) == 3
    assert (chosen.train.batch, chosen.train.schedule, chosen.train.evaluate_every) == (3, "constant", 1)
    asked = as_overfitting(
        replace(chosen, train=replace(chosen.train, schedule="cosine", ema=0.5)), {"schedule", "ema"}
    )
    assert (asked.train.schedule, asked.train.ema) == ("cosine", 0.5)
    for i in range(3):
        assert torch.equal(training[5, i][0], validation[0, i][0])
    assert verdict({"AP50": 0.95}, 3).startswith("Passed")


def test_what_is_learned_by_heart_has_objects_and_without_any_nothing_is_trained(tmp_path: Path) -> None:
    path = tiny_coco.write(tmp_path / "coco")
    base = tiny_recipe(path)
    base = replace(base, data=replace(base.data, size_bands=(32, 96)))
    whole = datasets(base, ALONE)[0]
    empty = [i for i in range(len(whole)) if not whole.objects(i)]
    assert empty, "a picture without objects makes it worth a test"
    file = whole.folder.annotations
    content = json.loads(file.read_text(encoding="utf-8"))
    content["images"].sort(key=lambda image: image["id"] != whole.images[empty[0]]["id"])  # that one comes first
    file.write_text(json.dumps(content), encoding="utf-8")
    few = replace(base, data=replace(base.data, overfit=1))
    training, validation = datasets(few, ALONE)
    assert len(training) == len(validation) == 1
    assert training.objects(0)
    assert torch.equal(training[0, 0][0], validation[0, 0][0])
    with pytest.raises(ValueError, match=r"instances_train2017.json: the 1 pictures hold no object .*train on others"):
        datasets(replace(base, data=replace(base.data, limit=1)), ALONE)
    for record in content["annotations"]:
        record["iscrowd"] = 1
    file.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(ValueError, match="hold no object"):
        datasets(few, ALONE)


def test_the_verdict_on_what_was_to_be_learned_by_heart() -> None:
    assert verdict({"AP50": 0.95}, 3).startswith("Passed")
    assert "ddetr-lite explain" in verdict({"AP50": 0.5}, 3)


# ---------------------------------------------------------------- pictures on their way


def test_shares_of_processes_and_pieces_make_up_the_batch() -> None:
    order = Order(103, 12, seed=3)
    whole = [key for batch in RunSampler(order, 2) for key in batch]
    assert len(whole) == 2 * 8 * 12
    for size, pieces in ((2, 1), (1, 3), (2, 3)):
        shares = [list(RunSampler(order, 2, 0, rank, size, pieces)) for rank in range(size)]
        steps = [
            [key for share in shares for part in share[step * pieces : (step + 1) * pieces] for key in part]
            for step in range(16)
        ]
        assert [key for step in steps for key in step] == whole
    for start in (3, 11):
        later = [key for batch in RunSampler(order, 2, start=start) for key in batch]
        assert later == whole[start * 12 :]
    assert len(RunSampler(order, 2, start=11)) == 5
    with pytest.raises(ValueError, match="make --batch a multiple of 5"):
        RunSampler(order, 2, size=5)


def test_pictures_of_a_batch_can_share_their_size() -> None:
    keys = EpochSampler(40, 4, seed=1, epoch=0, one_size=True).batches
    assert all(len({draw for *_, draw in batch}) == 1 for batch in keys)
    assert len({batch[0][2] for batch in keys}) > 5  # type: ignore[misc]
    transform = train_transform(AugmentConfig(short_sides=(32, 40, 48, 56), max_side=100, crop=False, flip=False))
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    from torchvision import tv_tensors

    sizes = {
        draw: transform(tv_tensors.Image(image), {"size": SizeDraw(draw)})[0].shape[1] for draw in (0.0, 0.3, 0.6, 0.99)
    }
    assert list(sizes.values()) == [32, 40, 48, 56]


def test_a_raw_batch_is_what_its_pictures_are() -> None:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, h, w), dtype=torch.uint8, generator=generator) for h, w in ((5, 9), (8, 4))]
    mean, std = torch.tensor(IMAGENET_MEAN), torch.tensor(IMAGENET_STD)
    raw = RawBatch.of(images)
    for ours, theirs in zip(batch_images(raw, mean, std), batch_images(images, mean, std), strict=True):
        assert (
            torch.equal(ours, theirs)
            if isinstance(theirs, torch.Tensor) and isinstance(ours, torch.Tensor)
            else ours == theirs
        )
    assert all(torch.equal(a, b) for a, b in zip(raw.pictures(), images, strict=True))


@pytest.fixture
def large_pictures(tmp_path: Path) -> Path:
    """tiny_coco's annotations on pictures of the sizes that they name, enlarged fourfold."""
    content = tiny_coco.content()
    for image in content["images"]:
        image["height"], image["width"] = 4 * image["height"], 4 * image["width"]
    for annotation in content["annotations"]:
        annotation["bbox"] = [4 * x for x in annotation["bbox"]]
    return tiny_coco.write(tmp_path / "large", content)


@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_decoded_pictures_are_what_the_files_hold(large_pictures: Path, cache: Any) -> None:
    base = tiny_recipe(large_pictures)
    chosen = replace(
        base,
        data=replace(base.data, cache=cache, size_bands=(32, 96)),
        augment=AugmentConfig(short_sides=(40, 64), eval_short_side=48, max_side=300, crop=False),
    )
    kept, _ = datasets(chosen, ALONE)
    plain, _ = datasets(replace(chosen, data=replace(chosen.data, cache="none")), ALONE)
    for i in range(3):
        assert max(kept.read_image(i).shape[1:]) < max(plain.read_image(i).shape[1:])
        image, target = kept[2, i]
        other, wanted = plain[2, i]
        assert image.shape == other.shape
        assert (image.float() - other.float()).abs().mean() < 12  # noise, resized in two steps instead of one
        assert torch.allclose(target["boxes"], wanted["boxes"], atol=1e-3)
        assert torch.equal(target["original_size"], wanted["original_size"])
    if cache == "disk":
        files = sorted((large_pictures / ".cache").iterdir())
        assert [f.suffix for f in files] == [".bytes"] * 2  # of training and of validation
        stamps = [f.stat().st_mtime_ns for f in files]
        again, _ = datasets(chosen, ALONE)
        assert torch.equal(again.read_image(1), kept.read_image(1))
        assert [f.stat().st_mtime_ns for f in files] == stamps  # found, not made again
        copied = pickle.loads(pickle.dumps(kept))  # as a process that is not forked gets it
        assert torch.equal(copied.read_image(2), kept.read_image(2))
        picture = large_pictures / "train2017" / "b.png"
        Image.fromarray(np.zeros((200, 120, 3), np.uint8)).save(picture)
        assert datasets(chosen, ALONE)[0].read_image(1).sum() == 0  # another file is seen


def test_pictures_keep_their_size_where_somebody_asks_for_it() -> None:
    assert size_to_keep((480, 640), (), 1333) == (480, 640)
    assert size_to_keep((480, 640), (0,), 1333) == (480, 640)
    assert size_to_keep((480, 640), (240, 300), 1333) == (300, 400)
    assert size_to_keep((100, 200), (240, 300), 1333) == (100, 200)


def odd_sizes(folder: Path) -> Path:
    """A data set of which two pictures, once resized by `ONCE`, would be resized again to another size."""
    content = tiny_coco.content()
    sizes = iter([(303, 640), (640, 330), (330, 300)])
    for image in content["images"]:
        image["height"], image["width"] = next(sizes)
    content["annotations"].append(
        {"id": 6, "image_id": 7, "category_id": 3, "bbox": [100.5, 31, 333, 170.7], "area": 9}
    )
    return tiny_coco.write(folder, content)


ONCE = AugmentConfig(short_sides=(80, 160), eval_short_side=160, max_side=208)


@pytest.mark.parametrize("few", [0, 3])
@pytest.mark.parametrize("cache", ["memory", "disk"])
def test_an_evaluation_sees_the_same_bits_with_and_without_a_cache(tmp_path: Path, cache: Any, few: int) -> None:
    base = tiny_recipe(odd_sizes(tmp_path / "odd"))
    data = replace(base.data, overfit=few, size_bands=(32, 96))
    # Training asks for more than evaluation: what is kept for it must not be what an evaluation gets.
    augment = replace(ONCE, short_sides=(80, 190))
    with_cache, without = (
        datasets(replace(base, data=replace(data, cache=kind), augment=augment), ALONE)[1] for kind in (cache, "none")
    )
    assert with_cache.pictures is not None
    for i in range(3):
        image, target = with_cache[0, i]
        other, wanted = without[0, i]
        assert with_cache.read_image(i).shape[1:] == image.shape[1:], "it is kept in the size that is wanted"
        assert torch.equal(image, other)
        assert all(torch.equal(target[name], wanted[name]) for name in wanted)
        assert target.keys() == wanted.keys()


@pytest.mark.parametrize("crop", [False, True])
def test_training_sees_the_same_sizes_with_and_without_a_cache(tmp_path: Path, crop: bool) -> None:
    """Turned, cut, with the size drawn for the whole batch or not: every draw and every size is that of the file."""
    base = tiny_recipe(odd_sizes(tmp_path / "odd"))
    augment = replace(ONCE, crop=crop, quarter_turn=True)
    with_cache, without = (
        datasets(replace(base, data=replace(base.data, cache=kind, size_bands=(32, 96)), augment=augment), ALONE)[0]
        for kind in ("memory", "none")
    )
    shapes = set()
    for epoch in range(12):
        for i in range(3):
            for key in ((epoch, i), (epoch, i, 0.7)):
                (image, target), (other, wanted) = with_cache[key], without[key]
                assert image.shape == other.shape
                assert torch.allclose(target["boxes"], wanted["boxes"], atol=1e-3)
                assert target.keys() == wanted.keys()
                shapes.add(tuple(image.shape))
    assert len(shapes) > 6


def test_pictures_of_the_same_name_length_and_time_are_told_apart(tmp_path: Path) -> None:
    """As in training and validation sets of bitmaps that were unpacked from one archive."""
    folder = tmp_path / "data"
    for split, grey in (("train", 10), ("val", 200)):
        (folder / split).mkdir(parents=True)
        Image.new("RGB", (9, 7), (grey,) * 3).save(folder / split / "a.bmp")
        os.utime(folder / split / "a.bmp", (1_600_000_000, 1_600_000_000))

    def kept(split: str, place: Path) -> PictureCache:
        return PictureCache([place / split / "a.bmp"], lambda size: size, place / ".cache")

    assert [int(kept(split, folder)[0].max()) for split in ("train", "val")] == [10, 200]
    assert len(list((folder / ".cache").iterdir())) == 2
    moved = folder.rename(tmp_path / "elsewhere")
    assert [int(kept(split, moved)[0].max()) for split in ("train", "val")] == [10, 200]
    assert len(list((moved / ".cache").iterdir())) == 2, "pictures that were moved with their cache are found in it"


def test_pictures_on_the_disk_are_only_read(large_pictures: Path) -> None:
    """A folder may be write-protected once it is filled. (Root may write anyway, but the system says how a file is open.)"""
    files = sorted((large_pictures / "train2017").iterdir())
    folder = large_pictures / ".cache"
    first = PictureCache(files, lambda size: size, folder)
    (file,) = folder.iterdir()
    folder.chmod(0o555)
    file.chmod(0o444)
    try:
        again = PictureCache(files, lambda size: size, folder)
        copied: PictureCache = pickle.loads(pickle.dumps(again))
        for cache in (first, again, copied):
            assert all(torch.equal(cache[i], read_picture(path)) for i, path in enumerate(files))
        maps = Path("/proc/self/maps")
        if maps.exists():
            own = [line for line in maps.read_text(encoding="utf-8").splitlines() if line.endswith(str(file))]
            assert own
            assert {line.split()[1] for line in own} == {"r--s"}  # shared by all processes, writable by none
    finally:
        folder.chmod(0o755)
    again[0].zero_()
    assert again[0].any(), "what is handed out is a copy"


def test_a_cache_that_cannot_be_written_says_what_to_do(large_pictures: Path) -> None:
    (large_pictures / ".cache").write_bytes(b"")
    files = sorted((large_pictures / "train2017").iterdir())
    with pytest.raises(
        ValueError, match=r"cannot be written into .*\.cache \(.*\): choose --cache memory, or make it a"
    ):
        PictureCache(files, lambda size: size, large_pictures / ".cache")


def test_a_picture_that_cannot_be_decoded_is_named(large_pictures: Path) -> None:
    (large_pictures / "train2017" / "a.jpg").write_bytes(b"no picture")
    data = CocoDetection(CocoFolder.find(large_pictures, "train"))
    with pytest.raises(ValueError, match=r"a\.jpg cannot be read"):
        PictureCache([data.file_of(i) for i in range(3)], lambda size: size)


def test_an_attempt_that_fails_leaves_no_large_file(large_pictures: Path) -> None:
    files = sorted((large_pictures / "train2017").iterdir())
    whole = files[-1].read_bytes()
    files[-1].write_bytes(whole[: len(whole) // 2])  # a head, and half of the pixels
    folder = large_pictures / ".cache"
    with pytest.raises(ValueError, match=rf"{files[-1].name} cannot be read"):
        PictureCache(files, lambda size: size, folder)
    assert list(folder.iterdir()) == []
    files[-1].write_bytes(whole)
    assert len(PictureCache(files, lambda size: size, folder)) == len(files)


def test_a_damaged_head_is_named(tmp_path: Path) -> None:
    """Pillow says it in a ValueError of its own, without the file."""
    (tmp_path / "a.ppm").write_bytes(b"P6 4 x 255 ")
    Image.new("RGB", (4, 4)).save(tmp_path / "b.png")
    data = bytearray((tmp_path / "b.png").read_bytes())
    data[11] = 2  # the length of the first chunk
    (tmp_path / "b.png").write_bytes(data)
    for name in ("a.ppm", "b.png"):
        with pytest.raises(ValueError, match=rf"picture .*{name} cannot be read"):
            picture_size(tmp_path / name)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"train": {"accumulate": 3}}, "make --batch a multiple of 3"),
        ({"train": {"ema": 1.0}}, "ema=1.0 must lie in 0..1"),
        ({"train": {"accumulate": 0}}, "accumulate=0 must be at least 1"),
        ({"train": {"max_bad_steps": 0}}, "max_bad_steps=0"),
        ({"train": {"device": "cuda:7"}}, "device 'cuda:7' cannot be used here"),
        ({"train": {"start_from": "nowhere.pt"}}, "nowhere.pt does not exist"),
        ({"data": {"overfit": -1}}, "overfit=-1"),
        ({"train": {"batch": 2, "accumulate": 4, "forecast": True}}, "make --batch a multiple of 4"),
        ({"data": {"folder": "nowhere"}}, "data folder nowhere does not exist"),
        ({"data": {"val_split": "test"}}, "no annotations for split 'test'"),
        ({"model": {"queries": 2}}, "the model only 2 queries: train with --queries"),
        ({"model": {"dim": 30}}, "dim=30"),
        ({"train": {"seed": 2**64}}, "seed=18446744073709551616 does not fit into 64 bits"),
        ({"model": {"heads": 3}}, "3"),
    ],
)
def test_runs_that_cannot_be_meant_say_why(shapes: Path, tmp_path: Path, words: dict[str, Any], message: str) -> None:
    chosen = tiny_recipe(shapes)
    for part, values in words.items():
        chosen = replace(chosen, **{part: replace(getattr(chosen, part), **values)})
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        train(chosen, tmp_path / "run", progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("row", ["detr", "deformable-detr-two-stage"])
def test_compiled_layers_give_the_same_gradients_under_changing_sizes(row: str) -> None:
    plain, compiled = small_model(row, 3).train(), small_model(row, 3).train()
    compile_layers(compiled)
    generator = torch.Generator().manual_seed(0)
    for model in (plain, compiled):  # at first, points lie on the cells' centres, where the gradient has a kink
        torch.manual_seed(1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if "sampling_offsets" in name or "attention_weights" in name:
                    parameter.add_(torch.randn_like(parameter) * 0.05)
    for height, width in ((64, 64), (48, 80), (64, 96)):
        images = [
            torch.rand(3, height, width, generator=generator),
            torch.rand(3, height - 8, width, generator=generator),
        ]
        targets = [
            {"labels": torch.tensor([0, 2]), "boxes": torch.tensor([[3.0, 4, 20, 30], [10, 10, 40, 40]])},
            {"labels": torch.tensor([1]), "boxes": torch.tensor([[3.0, 4, 20, 30]])},
        ]
        for model in (plain, compiled):
            model.zero_grad()
            torch.stack(list(model(images, targets).values())).sum().backward()
        for (name, mine), theirs in zip(compiled.named_parameters(), plain.parameters(), strict=True):
            if theirs.grad is not None and not (name.startswith("input_proj") and name.endswith("0.bias")):
                assert torch.allclose(mine.grad, theirs.grad, rtol=1e-3, atol=1e-4 * float(theirs.grad.abs().max())), (
                    name
                )


def test_pieces_of_a_mean_are_averaged_and_pieces_of_a_sum_are_added(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision's losses are means over a batch, so pieces of it count half; ours are sums over the step's objects."""
    sample = (torch.zeros(3, 32, 32, dtype=torch.uint8), _target([[1.0, 2, 30, 29]]))
    for row, expected in (("faster-rcnn", 1.0), ("detr", 2.0)):
        model = small_model(row, 2).train()
        parameter = next(p for p in model.parameters() if p.requires_grad)
        monkeypatch.setattr(type(model), "forward", lambda *_: {"loss": parameter.sum()})  # noqa: B023
        config = tiny_recipe(Path(), row).train
        step = Step(State(model, [], None), config, ALONE)
        losses = step.gradient([Batch.of([sample]), Batch.of([sample])])
        assert float(losses["loss"]) == pytest.approx(expected * float(parameter.detach().sum()), rel=1e-5)
        assert parameter.grad is not None
        assert torch.allclose(parameter.grad, torch.full_like(parameter, expected))


def test_random_numbers_depend_on_seed_step_and_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = small_model("detr", 2).train()
    parameter, drawn = next(p for p in model.parameters() if p.requires_grad), []

    def forward(*_: Any) -> dict[str, torch.Tensor]:
        drawn.append(float(torch.rand(())))
        return {"loss": parameter.sum()}

    monkeypatch.setattr(type(model), "forward", forward)
    piece = Batch.of([(torch.zeros(3, 32, 32, dtype=torch.uint8), _target([[1.0, 2, 30, 29]]))])
    config = tiny_recipe(Path(), "detr").train
    for seed, at, rank in ((0, 3, 0), (0, 3, 0), (0, 4, 0), (0, 3, 1), (1, 3, 0)):
        torch.rand(7)  # what was drawn before does not matter
        step = Step(State(model, [], None, step=at), replace(config, seed=seed), World(torch.device("cpu"), rank))
        step.gradient([piece])
    assert drawn[0] == drawn[1]
    assert len(set(drawn)) == 4


def test_a_run_that_ends_before_its_first_step_can_go_on_or_begin_anew(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = tiny_recipe(shapes, "detr", epochs=1, evaluate_every=0)

    def fails(*_: Any) -> None:
        raise ValueError("the largest batch does not fit")

    monkeypatch.setattr("ddetr_lite.engine.train.forecast", fails)
    with pytest.raises(ValueError, match="does not fit"):
        train(replace(chosen, train=replace(chosen.train, forecast=True)), tmp_path / "run", progress=False)
    monkeypatch.setattr(Run, "train", lambda *_: {})
    train(chosen, tmp_path / "run", progress=False)  # nothing was begun there
    monkeypatch.undo()
    train(chosen, tmp_path / "run", resume=True, progress=False)  # and from the first line on there is a state
    assert checkpoint.read(tmp_path / "run" / "last.pt")["step"] == 5


def test_sizes_that_cannot_be_evaluated_are_an_error_at_once(large_pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="shares of the picture, but pictures differ in size"):
        train(tiny_recipe(large_pictures), tmp_path / "run", progress=False)


@pytest.mark.parametrize("same", [True, False])
def test_only_the_torchrun_that_began_a_run_goes_on_by_itself(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, same: bool
) -> None:
    chosen = tiny_recipe(shapes, "detr", epochs=1, evaluate_every=0)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "first")
    train(chosen, tmp_path / "run", progress=False)
    before = (tmp_path / "run" / "log.jsonl").read_bytes()
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "first" if same else "second")
    if same:
        train(chosen, tmp_path / "run", progress=False)
    else:
        with pytest.raises(ValueError, match="already holds a run"):
            train(chosen, tmp_path / "run", progress=False)
    assert (tmp_path / "run" / "log.jsonl").read_bytes() == before


def test_a_run_stopped_between_an_epoch_and_its_evaluation_makes_up_for_it(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = tiny_recipe(shapes, "detr", epochs=2, evaluate_every=1)
    whole = train(chosen, tmp_path / "whole", progress=False)
    with monkeypatch.context() as patch:
        calls: list[int] = []

        def stopped(state: State, *_: Any, **__: Any) -> None:
            calls.append(state.step)
            if len(calls) == 2:  # the line of the evaluation is written, the state not yet
                raise KeyboardInterrupt

        patch.setattr(State, "save_best", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(chosen, tmp_path / "stopped", progress=False)
    assert train(chosen, tmp_path / "stopped", resume=True, progress=False) == whole
    for name in ("log.jsonl", "watched.jsonl"):
        mine, theirs = ([(x["kind"], x["step"]) for x in read_log(tmp_path / f / name)] for f in ("stopped", "whole"))
        assert mine == theirs
    again = train(chosen, tmp_path / "whole", resume=True, progress=False)
    assert again == {}  # nothing is left to do


def test_a_state_is_found_again_as_it_was(shapes: Path, tmp_path: Path) -> None:
    model: Any = small_model("detr", 2)
    state = State(model, make_optimizers(model, recipe("coco").train), average_of(model, 0.9), 7, 0.25, 12.5, 3, 5)
    state.save(tmp_path, recipe("coco", "detr"), ["a", "b"], 10)
    other: Any = small_model("detr", 2, seed=1)
    found = State(other, make_optimizers(other, recipe("coco").train), average_of(other, 0.9))
    found.load(checkpoint.read(tmp_path / "last.pt"))
    assert [getattr(found, name) for name in NUMBERS] == [7, 0.25, 12.5, 3, 5]
    assert all(torch.equal(v, other.state_dict()[k]) for k, v in model.state_dict().items())


def test_what_is_found_does_not_depend_on_the_batch(tmp_path: Path) -> None:
    """Pictures of one size share a batch, so that none is padded; one whose record names no size is alone."""
    content = tiny_coco.content()
    (h, w), template = (40, 60), content["images"][0]
    content["images"] = [
        {**template, "id": i, "file_name": f"{i}.jpg", "height": h + 9 * (i % 3), "width": w} for i in range(1, 8)
    ]
    content["annotations"] = []
    folder = CocoFolder.find(tiny_coco.write(tmp_path, content), "val")
    data = CocoDetection(folder, eval_transform(AugmentConfig(eval_short_side=64, max_side=100)))
    sizeless = {k: v for k, v in data.images[0].items() if k not in ("height", "width")}
    data.images[0] = sizeless
    batches = evaluation_batches(data, 2)
    assert sorted(index for batch in batches for _, index, *_ in batch) == list(range(7))
    assert sorted(map(len, batches)) == [1, 2, 2, 2]
    assert all(len({data.images[i].get("height") for _, i, *_ in batch}) == 1 for batch in batches)
    assert evaluation_batches(data, 4, padded=True) == [[(0, i) for i in range(4)], [(0, i) for i in range(4, 7)]]
    model = small_model("deformable-detr", 2)
    alone, together = (dict(detect(model, data, batch=batch)) for batch in (1, 4))
    for image_id, found in alone.items():
        torch.testing.assert_close(together[image_id]["scores"], found["scores"])
        torch.testing.assert_close(together[image_id]["boxes"], found["boxes"], atol=1e-3, rtol=1e-4)
    padded = dict(detect(model, data, batch=4, padded=True))
    assert any(not torch.allclose(padded[i]["scores"], found["scores"], atol=1e-5) for i, found in alone.items())


def test_processes_share_an_evaluation(shapes: Path) -> None:
    data = CocoDetection(CocoFolder.find(shapes, "val"))
    model = small_model("detr", len(data.classes))
    whole = dict(detect(model, data, batch=2))
    shares = [dict(detect(model, data, batch=2, rank=rank, size=2)) for rank in range(2)]
    assert [len(share) for share in shares] == [3, 2]
    assert not shares[0].keys() & shares[1].keys()
    assert all(torch.equal(found["boxes"], whole[i]["boxes"]) for share in shares for i, found in share.items())


@pytest.mark.parametrize("training", [True, False])
def test_looking_for_objects_keeps_the_mode(shapes: Path, training: bool) -> None:
    """Also where only the first picture is asked for; in between the model does not train."""
    data = CocoDetection(CocoFolder.find(shapes, "val"))
    model = small_model("detr", len(data.classes)).train(training)
    for _ in detect(model, data, batch=2):
        assert not model.training
        break
    assert model.training == training
    dict(detect(model, data, batch=2))
    assert model.training == training


# ---------------------------------------------------------------- what the options do


def one_step(row: str = "detr", **change: Any) -> tuple[Any, Step, Batch]:
    """A model, the step that trains it with these options, and a batch."""
    model = small_model(row, 2).train()
    config = replace(tiny_recipe(Path(), row).train, **change)
    step = Step(State(model, make_optimizers(model, config), average_of(model, config.ema)), config, ALONE)
    pixels = torch.randint(0, 256, (3, 48, 48), dtype=torch.uint8)
    return model, step, Batch.of([(pixels, _target([[1.0, 2, 30, 29]]))])


def test_each_group_gets_its_share_of_the_rate() -> None:
    rates = {"lr": 1e-3, "muon_lr": 0.01, "backbone_lr": 0.1, "sampling_lr": 0.2}
    _, step, batch = one_step("deformable-detr", optimizer="muon", **rates)
    step([batch], 5e-4)
    for optimizer in step.state.optimizers:
        for group in optimizer.param_groups:
            share = {"backbone": 0.1, "sampling": 0.2, "rest": 1.0}[group["name"]]
            muon = 10 if group["optimizer"] == "muon" else 1
            assert group["lr"] == pytest.approx(5e-4 * share * muon), group["name"]


@pytest.mark.parametrize("clip", [0.01, 0.0])
def test_a_long_gradient_is_shortened(clip: float) -> None:
    model, step, batch = one_step(clip_norm=clip)
    _, norm = step([batch], 1e-4)
    after = torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None]).norm()
    assert float(norm) > 0.1
    assert float(after) == pytest.approx(clip or float(norm), rel=1e-3)


def test_precision_is_what_was_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    places = torch.device("cuda"), torch.device("cpu")
    choices: Any = {"auto": (True, False), "fp32": (False, False), "bf16": (True, True)}
    for precision, expected in choices.items():
        config = replace(recipe("coco").train, precision=precision)
        assert tuple(use_bf16(config, place) for place in places) == expected, precision


def test_what_changes_a_run_is_not_free() -> None:
    now = recipe_to_dict(recipe("shapes"))
    free = {"workers", "device", "accumulate", "compile", "log_every", "checkpoint_every", "forecast"}
    for name, value in now["train"].items():
        other: Any = "fp32" if name == "precision" else "x"
        if isinstance(value, (int, float)):
            other = not value if isinstance(value, bool) else value * 2 + 1
        changed = {**now, "train": {**now["train"], name: other}}
        assert (differing(now, changed) == "") == (name in free), name


def test_the_average_forgets_as_fast_as_was_asked() -> None:
    model, step, batch = one_step(ema=0.25, lr=1e-2)
    expected = None
    for count in range(8):
        step([batch], 1e-2)
        now = model.class_embed.weight.detach().clone()
        decay = min(0.25, (1 + count) / (10 + count))
        expected = now if expected is None else decay * expected + (1 - decay) * now
    average: Any = step.state.average
    torch.testing.assert_close(average.module.class_embed.weight, expected, atol=1e-6, rtol=0)


def test_a_backbone_without_a_learning_rate_has_no_gradient(shapes: Path, tmp_path: Path) -> None:
    run = Run(tiny_recipe(shapes, "detr", backbone_lr=0.0), tmp_path, False, False, ALONE)
    for name, parameter in run.state.model.named_parameters():
        assert parameter.requires_grad == (not name.startswith("backbone")), name


def test_the_seed_chooses_weights_order_and_draws(shapes: Path, tmp_path: Path) -> None:
    runs = [
        Run(tiny_recipe(shapes, "detr", seed=seed), tmp_path / str(i), False, False, ALONE)
        for i, seed in enumerate((1, 1, 2))
    ]
    first, again, other = (run.state.model.query_embed.weight for run in runs)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    base = tiny_recipe(shapes, seed=5)
    training, validation = datasets(replace(base, data=replace(base.data, limit=7)), ALONE)
    assert (len(training), len(validation), training.seed) == (7, 5, 5)


def test_states_are_saved_within_an_epoch(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved, original = [], State.save

    def save(state: State, *given: Any) -> None:
        saved.append(state.step)
        original(state, *given)

    monkeypatch.setattr(State, "save", save)
    options = {"epochs": 2, "checkpoint_every": 2, "evaluate_every": 0, "log_every": 100}
    train(tiny_recipe(shapes, "detr", **options), tmp_path, progress=False)
    assert saved == [0, 2, 4, 5, 6, 8, 10, 10]  # five steps an epoch


def test_the_best_model_is_kept_and_of_equal_ones_the_last(tmp_path: Path) -> None:
    state = State(small_model("detr", 2), [], None)
    for epoch, ap, kept in ((1, 0.2, 1), (2, 0.1, 1), (3, 0.2, 3), (4, 0.3, 4), (5, 0.29, 4)):
        state.save_best(tmp_path, recipe("shapes", "detr"), ["a", "b"], epoch, {"AP": ap})
        assert checkpoint.read(tmp_path / "best.pt")["about"]["epoch"] == kept, epoch
    assert state.best == 0.3


def test_the_best_model_says_from_which_score_on_it_is_right(shapes: Path, tmp_path: Path) -> None:
    train(tiny_recipe(shapes, epochs=1, evaluate_every=1, lr=1e-3), tmp_path, progress=False)
    loaded = checkpoint.load_model(tmp_path / "best.pt")
    data = CocoDetection(CocoFolder.find(shapes, "val"), eval_transform(tiny_recipe(shapes).augment))
    detections = dict(detect(loaded.model, data))
    assert loaded.about["threshold"] == (best_threshold(find_errors(detections, data)) or None)
    assert threshold_for(loaded) == (loaded.about["threshold"] or 0.5)
    few = best_threshold(find_errors({k: detections[k] for k in list(detections)[:2]}, data.first(2))) or None
    assert threshold_of(detections, data, most=2) == few
    nothing = {k: {**v, "labels": v["labels"] + 100} for k, v in detections.items()}
    assert threshold_of(nothing, data) is None  # no correct one: no score is better than another


def test_older_spellings_of_options_are_what_they_are_now() -> None:
    now = recipe_to_dict(recipe("shapes"))
    for old, new in (
        ({"cache": True, "overfit": False, "limit": 5}, {"cache": "memory", "overfit": 0, "limit": 5}),
        ({"cache": False, "overfit": True, "limit": 8}, {"cache": "none", "overfit": 8, "limit": 0}),
    ):
        found = recipe_to_dict(recipe_from_dict({**now, "data": now["data"] | old}))
        assert found == {**now, "data": now["data"] | new}
        assert {name: type(found["data"][name]) for name in new} == {name: type(new[name]) for name in new}


def test_a_model_is_judged_on_pictures_of_its_own_size(large_pictures: Path, tmp_path: Path) -> None:
    """And under its own labels: both are in the checkpoint."""
    model = small_model("detr", 2)
    about = {"recipe": {"augment": {"short_sides": [20], "eval_short_side": 24, "max_side": 40}}}
    checkpoint.save_model(tmp_path / "m.pt", model, ["brush", "car"], about)
    loaded = checkpoint.load_model(tmp_path / "m.pt")
    data = validation_set(loaded, large_pictures)
    assert {min(data[i][0].shape[1:]) for i in range(len(data))} <= {
        24,
        23,
        22,
    }  # or less, where a side would be above 40
    assert data.classes == ["brush", "car"]
    assert evaluate(loaded.model, data)["AP"] >= 0
    few = CocoDetection(CocoFolder.find(large_pictures, "val"), classes=["brush", "car", "cat"])
    with pytest.raises(ValueError, match="has 3 classes, the model 2: give the data set the model's"):
        evaluate(loaded.model, few)
    detections = dict(detect(loaded.model, data))
    found = next(iter(detections.values()))
    with pytest.raises(ValueError, match="has no image id 5: these detections are of other data"):
        ap_of({5: found}, data)
    for name in ("scores", "boxes"):
        with pytest.raises(ValueError, match=f"{name} hold NaN or infinity"):
            ap_of({next(iter(detections)): {**found, name: found[name] * torch.nan}}, data)


def test_fine_tuning_from_python_takes_model_and_sizes_of_the_checkpoint(tmp_path: Path) -> None:
    model = small_model("deformable-detr-two-stage", 2)
    about = {"recipe": {"augment": {"short_sides": [20], "eval_short_side": 24, "max_side": 40}}}
    for name, told in (("resized", about), ("as-they-are", {})):
        path = tmp_path / f"{name}.pt"
        checkpoint.save_model(path, model, ["brush", "car"], told)
        chosen = recipe_for(path, "coco-mini")
        base = recipe("coco-mini", "deformable-detr-two-stage")
        assert chosen.model == model.config
        assert chosen.train == replace(base.train, start_from=str(path))
        sizes: Any = {"short_sides": (20,), "eval_short_side": 24, "max_side": 40} if told else {}
        assert chosen.augment == replace(base.augment, **sizes)


def test_a_report_of_equal_evaluations_shows_the_last_too(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "log.jsonl")
    for step, ap in ((5, 0.2), (10, 0.3), (15, 0.3), (20, 0.1)):
        log.write("evaluate", step, AP=ap)
    best = read_run(tmp_path).best
    assert best is not None
    assert best["step"] == 15


def test_detections_are_in_pixels_of_the_file(tmp_path: Path) -> None:
    """Where the two sides are not resized alike, too."""
    content = tiny_coco.content()
    for image, (h, w) in zip(content["images"], ((40, 60), (9, 64), (64, 30)), strict=True):
        image["height"], image["width"] = h, w
    content["annotations"] = content["annotations"][:1]
    transform = eval_transform(AugmentConfig(eval_short_side=96, max_side=100))
    data = CocoDetection(CocoFolder.find(tiny_coco.write(tmp_path, content), "val"), transform)
    model = small_model("detr", 2).eval()
    for i, (_, found) in enumerate(detect(model, data, batch=1)):
        image, target = data[i]
        h, w = target["original_size"].tolist()
        scale = torch.tensor([w / image.shape[2], h / image.shape[1]]).repeat(2)
        torch.testing.assert_close(found["boxes"], model([image])[0]["boxes"] * scale, atol=1e-4, rtol=0)
        assert float(scale.max()) < 0.8


def test_predictions_are_in_pixels_of_the_picture_and_their_scores_reach_the_threshold(tmp_path: Path) -> None:
    model, sizes = small_model("detr", 2).eval(), {"eval_short_side": 96, "max_side": 100}
    checkpoint.save_model(tmp_path / "m.pt", model, ["a", "b"], {"recipe": {"augment": sizes}})
    loaded = checkpoint.load_model(tmp_path / "m.pt")
    pixels = torch.randint(0, 256, (3, 9, 64), dtype=torch.uint8)
    image, _ = eval_transform(AugmentConfig(eval_short_side=96, max_side=100))(tv_tensors.Image(pixels), {})
    scale = torch.tensor([64 / image.shape[2], 9 / image.shape[1]]).repeat(2)
    assert abs(float(scale[0] / scale[1]) - 1) > 0.005
    found = predict(loaded, pixels, threshold=0.0)
    expected = model([image.as_subclass(torch.Tensor)])[0]["boxes"] * scale
    torch.testing.assert_close(torch.tensor([one.box for one in found]), expected, atol=1e-4, rtol=0)
    assert len(predict(loaded, pixels, threshold=found[2].score)) == 3


def test_a_missing_validation_picture_is_noticed_before_the_run(shapes: Path, tmp_path: Path) -> None:
    folder = tmp_path / "shapes"
    shutil.copytree(shapes, folder)
    next((folder / "val").iterdir()).unlink()
    with pytest.raises(ValueError, match=r"val.*does not exist \(1 of 5 are missing\)"):
        datasets(tiny_recipe(folder), ALONE)


def test_too_little_memory_or_disk_is_said_before_decoding(
    large_pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = sorted((large_pictures / "train2017").iterdir())
    need = 3 * sum(h * w for h, w in map(picture_size, files))
    monkeypatch.setattr(picture_cache, "free_bytes", lambda: need)
    assert len(PictureCache(files, lambda size: size)) == 3
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # two processes, two copies
    with pytest.raises(ValueError, match="more than is free: choose --cache disk"):
        PictureCache(files, lambda size: size)
    usage = shutil.disk_usage(large_pictures)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage._replace(free=need - 1))
    with pytest.raises(ValueError, match="more than is free there: choose --cache none"):
        PictureCache(files, lambda size: size, large_pictures / ".cache")


def test_a_picture_that_was_changed_is_decoded_anew(tmp_path: Path) -> None:
    """Of the same name and length: only the time tells."""
    file, cache = tmp_path / "a.bmp", tmp_path / ".cache"
    for value in (10, 20):
        Image.fromarray(np.full((8, 9, 3), value, np.uint8)).save(file)
        os.utime(file, ns=(value, value))
        assert PictureCache([file], lambda size: size, cache)[0].unique().tolist() == [value]
    assert len(list(cache.iterdir())) == 2


def test_muons_rate_follows_the_batch_too() -> None:
    base = recipe("shapes")
    larger = replace(base, train=replace(base.train, batch=64))
    found, _ = follow(larger, base, {"batch"})
    assert (found.train.lr, found.train.muon_lr) == (2 * base.train.lr, 2 * base.train.muon_lr)
    assert follow(larger, base, {"batch", "muon_lr"}) == (larger, [])


def test_overfitting_shortens_the_warm_up_and_keeps_no_average() -> None:
    base = recipe("shapes")
    chosen = as_overfitting(replace(base, data=replace(base.data, overfit=4), train=replace(base.train, ema=0.9)))
    assert (base.train.warmup_steps, chosen.train.warmup_steps, chosen.train.ema) == (100, 10, 0.0)


def test_a_checkpoint_of_another_backbone_is_refused(tmp_path: Path) -> None:
    source = small_model("detr", 2)
    checkpoint.save_model(tmp_path / "s.pt", source, ["cat", "dog"], {})
    dilated = small_model("detr", 2, backbone=replace(source.config.backbone, dilation=True))
    with pytest.raises(ValueError, match="was made with backbone="):
        start_from(dilated, ["cat", "dog"], tmp_path / "s.pt")


def test_classes_in_another_order_take_their_rows_along(tmp_path: Path) -> None:
    source, model = small_model("detr", 2, seed=1), small_model("detr", 2, seed=2)
    checkpoint.save_model(tmp_path / "s.pt", source, ["cat", "dog"], {})
    assert "no head is made anew" in start_from(model, ["dog", "cat"], tmp_path / "s.pt")
    assert torch.equal(model.class_embed.weight[[1, 0, 2]], source.class_embed.weight)


def test_the_forecast_is_for_a_step_and_for_an_evaluation(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that goes on by a second at each look."""
    ticks = itertools.count()
    monkeypatch.setattr(World, "now", lambda place: float(next(ticks)))
    chosen = tiny_recipe(shapes, "detr")
    training, _ = datasets(chosen, ALONE)
    model = build(chosen.model, len(training.classes))
    step = Step(State(model, make_optimizers(model, chosen.train), None), chosen.train, ALONE)
    found = forecast(chosen, step, training, 40, order_of(chosen.train, training))
    assert found.step_seconds == pytest.approx(1 + 1 / 3)
    assert found.evaluation_seconds == pytest.approx(40 / 4)
    step.place = World(torch.device("cpu"), 0, 2)  # each of two processes takes half of a batch, and of an evaluation
    assert forecast(chosen, step, training, 40, order_of(chosen.train, training)).evaluation_seconds == pytest.approx(
        40 / 2 / 2
    )


def test_the_largest_batch_is_an_evaluations_where_its_pictures_are_larger() -> None:
    batch = Batch.of([(torch.zeros(3, 30, 40, dtype=torch.uint8), _target([[1.0, 2, 39, 29]]))])
    found = largest(batch, AugmentConfig(short_sides=(64,), eval_short_side=96, max_side=500))
    assert found.images.pixels.shape == (1, 3, 96, 192)
