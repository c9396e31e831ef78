"""A run's folder: one process at a time, only with its own data, and nothing left behind by those that were killed."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from test_engine import TINY, tiny_recipe

from ddetr_lite.datasets.shapes import ShapesConfig, write_shapes
from ddetr_lite.engine import checkpoint
from ddetr_lite.engine.fine_tuning import start_from
from ddetr_lite.engine.log import RunLog, read_log
from ddetr_lite.engine.recipe_checks import check
from ddetr_lite.engine.recipes import Recipe, recipe
from ddetr_lite.engine.train import train
from ddetr_lite.models.backbone import BackboneConfig
from ddetr_lite.models.presets import build, model_config


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    config = ShapesConfig(size=48, min_size=0.15, train_images=8, val_images=3, classes=("circle", "square"))
    return write_shapes(folder, config, progress=False)


def short(folder: Path, **options: Any) -> Recipe:
    return tiny_recipe(folder, "detr", epochs=1, evaluate_every=0, **options)


def test_a_second_process_is_refused(shapes: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    with FileLock(run / ".lock"):
        for resume in (False, True):
            with pytest.raises(ValueError, match="run is being trained in by another process: wait for it, or end it"):
                train(short(shapes), run, resume=resume, progress=False)
    assert [path.name for path in run.iterdir()] == [".lock"]
    train(short(shapes), run, progress=False)
    with FileLock(run / ".lock", timeout=0):  # it is given back
        pass


def test_what_a_killed_process_left_is_swept(shapes: Path, tmp_path: Path) -> None:
    (tmp_path / ".last.pt-0123abcd.unfinished").write_bytes(b"half a checkpoint")
    train(short(shapes), tmp_path, progress=False)
    assert not list(tmp_path.glob("*.unfinished"))


def test_a_model_alone_is_no_run_to_go_on_with(shapes: Path, tmp_path: Path) -> None:
    chosen = short(shapes)
    checkpoint.save_model(tmp_path / "last.pt", build(chosen.model, 2), ["circle", "square"], {})
    with pytest.raises(ValueError, match=r"last\.pt holds no run to go on with.*--start-from .*last\.pt"):
        train(chosen, tmp_path, resume=True, progress=False)


def test_only_the_last_line_of_a_log_can_be_cut_off(tmp_path: Path) -> None:
    """A run that was killed in the middle of a line, and goes on, has no broken line in its middle."""
    log = RunLog(tmp_path / "log.jsonl")
    for step in (0, 1, 2):
        log.write("train", step, loss=1.0)
    whole = log.path.read_text(encoding="utf-8")
    log.path.write_text(whole + whole[:9], encoding="utf-8")
    assert [line["step"] for line in read_log(log.path)] == [0, 1, 2]
    log.rewind(1, evaluated=0)
    log.write("train", 2, loss=1.0)
    assert log.path.read_text(encoding="utf-8") == whole
    first, second, third = whole.splitlines()
    log.path.write_text("\n".join((first, second[:9], "", third)), encoding="utf-8")
    with pytest.raises(ValueError, match=r"log\.jsonl: line 2 is no JSON \(.*\): correct or remove it"):
        read_log(log.path)


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_anew(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr("ddetr_lite.engine.run.State.save", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(short(shapes), tmp_path, progress=False)
    assert [line["kind"] for line in read_log(tmp_path / "log.jsonl")] == ["start"]
    with pytest.raises(ValueError, match="start without --resume"):
        train(short(shapes), tmp_path, resume=True, progress=False)
    train(short(shapes), tmp_path, progress=False)
    assert [line["kind"] for line in read_log(tmp_path / "log.jsonl")].count("start") == 1


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"classes": ("star", "square")}, r"other classes than the run began with \('circle' is now 'star'\)"),
        ({"classes": ("circle", "square", "star")}, "there were 2 classes and are now 3"),
        ({"train_images": 12}, "gives 12 pictures to train on, and the run began with 8"),
    ],
)
def test_a_run_goes_on_with_its_own_data_alone(shapes: Path, tmp_path: Path, change: dict[str, Any], said: str) -> None:
    config = {"size": 48, "min_size": 0.15, "train_images": 8, "val_images": 3, "classes": ("circle", "square")}
    run = tmp_path / "run"
    train(short(shapes), run, progress=False)
    elsewhere = write_shapes(tmp_path / "elsewhere", ShapesConfig(**config), progress=False)  # type: ignore[arg-type]
    train(short(elsewhere), run, resume=True, progress=False)  # the same data in another place
    before = (run / "last.pt").read_bytes()
    other = write_shapes(tmp_path / "other", ShapesConfig(**{**config, **change}), progress=False)
    with pytest.raises(ValueError, match=f"other.*instances_train.json.*{said}.*start a new run with --start-from"):
        train(short(other), run, resume=True, progress=False)
    assert (run / "last.pt").read_bytes() == before


def test_another_cache_may_be_given_but_not_none(shapes: Path, tmp_path: Path) -> None:
    """Kept in memory or on the disk pictures are the same; without a cache they may be resized once instead of twice."""
    train(short(shapes), tmp_path, progress=False)
    chosen = short(shapes)
    for cache in ("disk", "none"):
        now: Any = replace(chosen, data=replace(chosen.data, cache=cache))
        if cache == "disk":
            train(now, tmp_path, resume=True, progress=False)
        else:
            with pytest.raises(ValueError, match="cache was memory and is now none"):
                train(now, tmp_path, resume=True, progress=False)


def test_frozen_batch_norms_carry_over_to_trained_ones(tmp_path: Path) -> None:
    """A trained batch norm counts its batches, in a tensor that a frozen one does not have."""
    small: Any = model_config("detr", "small")
    config = replace(small, **TINY, stride=32)
    frozen, trained = (replace(config, backbone=BackboneConfig("resnet18", "none", frozen=f)) for f in (True, False))
    source = build(frozen, 2, load_backbone=False)
    checkpoint.save_model(tmp_path / "source.pt", source, ["cat", "dog"], {})
    for classes in (["cat", "dog"], ["cat", "horse"]):
        model = build(trained, 2)
        start_from(model, classes, tmp_path / "source.pt")
        state = model.state_dict()
        shared = [name for name in source.state_dict() if not name.startswith("class_embed")]
        assert all(torch.equal(state[name], source.state_dict()[name]) for name in shared)


@pytest.mark.parametrize(
    ("part", "field", "value"),
    [
        ("augment", "max_side", 0),
        ("augment", "short_sides", (0,)),
        ("augment", "eval_short_side", -5),
        ("model", "hints", -1),
        ("model", "encoder_layers", -1),
        ("train", "seed", -1),
        ("train", "drop_epoch", -3),
        ("train", "clip_norm", float("nan")),
        ("train", "backbone_lr", float("inf")),
    ],
)
def test_options_that_cannot_be_meant_are_named(part: str, field: str, value: Any) -> None:
    base: Any = recipe("coco", "deformable-detr-two-stage")
    check(base)
    with pytest.raises(ValueError, match=f"{field}="):
        check(replace(base, **{part: replace(getattr(base, part), **{field: value})}))


@pytest.mark.parametrize("value", [float("nan"), -5.0])
def test_weights_of_losses_are_numbers(value: float) -> None:
    base: Any = recipe("coco", "detr")
    loss = base.model.loss
    for name, other in (
        (r"loss\.l1", replace(loss, l1=value)),
        (r"loss\.matching\.giou", replace(loss, matching=replace(loss.matching, giou=value))),
    ):
        with pytest.raises(ValueError, match=f"{name}={value}"):
            check(replace(base, model=replace(base.model, loss=other)))


def test_the_checkpoint_says_how_many_pictures_there_were(shapes: Path, tmp_path: Path) -> None:
    train(short(shapes), tmp_path, progress=False)
    assert checkpoint.read(tmp_path / "last.pt")["about"]["pictures"] == 8
    assert json.loads((tmp_path / "recipe.json").read_text(encoding="utf-8"))["train"]["epochs"] == 1
