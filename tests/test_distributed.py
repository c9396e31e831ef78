"""Two processes under torchrun: the same as one, and a run that loses a process goes on by itself.

They are started once for all tests that only look, and once more to be killed.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_coco
import torch
from test_engine import tiny_recipe
from torch.nn.parallel import DistributedDataParallel

from ddetr_lite.datasets.coco import CocoDetection, CocoFolder
from ddetr_lite.datasets.shapes import ShapesConfig, write_shapes
from ddetr_lite.datasets.transforms import AugmentConfig, eval_transform
from ddetr_lite.engine import checkpoint
from ddetr_lite.engine.data import order_of
from ddetr_lite.engine.distributed import world
from ddetr_lite.engine.evaluate import detect, results_of
from ddetr_lite.engine.log import read_log
from ddetr_lite.engine.recipes import Recipe, recipe_to_dict
from ddetr_lite.engine.train import train
from ddetr_lite.models.backbone import BackboneConfig

pytestmark = pytest.mark.skipif(
    not torch.distributed.is_available() or sys.platform != "linux", reason="gloo's processes are found under /proc"
)

SCRIPT = """
import json, sys
from pathlib import Path
import torch
from ddetr_lite.engine.distributed import world
from ddetr_lite.engine.recipes import recipe_from_dict
from ddetr_lite.engine.train import train
torch.set_num_threads(1)
with world("cpu"):  # joined once for all these runs
    for file in sys.argv[1:]:
        recipe = recipe_from_dict(json.loads(Path(file).read_text()))
        train(recipe, Path(file).with_suffix(""), progress=False)
"""


def recipes(folder: Path, coco: Path) -> dict[str, Recipe]:
    """What the two processes train: by the paper's rule for learning rates, 20 steps of four pictures."""
    alike = {"epochs": 5, "batch": 4, "optimizer": "adamw", "lr": 2e-4, "backbone_lr": 0.1, "sampling_lr": 0.1}
    alike |= {"warmup_steps": 0, "log_every": 5, "evaluate_every": 5, "checkpoint_every": 100}
    chosen: dict[str, Recipe] = {}
    for row in ("detr", "deformable-detr-two-stage", "deformable-detr-refine"):
        base = tiny_recipe(folder, row, **alike)
        model: Any = base.model
        model = replace(model, dropout=0.0)
        augment = AugmentConfig(short_sides=(), eval_short_side=0, crop=False, color=True)
        chosen[row] = replace(base, model=model, augment=augment)
    # Two processes, and each takes its half in two pieces.
    last = chosen["deformable-detr-refine"]
    chosen["deformable-detr-refine"] = replace(last, train=replace(last.train, accumulate=2))
    # With everything that draws random numbers: what a run that loses a process must end with.
    chosen["whole"] = tiny_recipe(folder, "deformable-detr-refine", epochs=4, ema=0.9)
    # Of its three pictures one has no object: in turn each process has nothing to learn from.
    # It then has no losses of hints either.
    alone: Any = {"epochs": 6, "batch": 2, "evaluate_every": 0, "group_orientations": False, "seed": 5}
    base = tiny_recipe(coco, "deformable-detr-two-stage", **alone)
    model = base.model
    model = replace(model, hints=2, dim=64)  # two channels in each group: a map of one cell still has a mean
    chosen["empty"] = replace(base, model=model, data=replace(base.data, size_bands=(32, 96)))
    # With batch norms that are trained, each process has statistics of its own pictures.
    base = tiny_recipe(folder, "detr", epochs=1, ema=0.5)
    model = base.model
    model = replace(model, backbone=BackboneConfig("resnet18", "none", frozen=False), stride=32)
    chosen["batch-norms"] = replace(base, model=model)
    return chosen


def torchrun(files: list[Path], *options: str) -> list[str]:
    """The command that starts two processes with these recipes, each in a folder of the file's name."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *options]
    script = files[0].parent / "script.py"
    script.write_text(SCRIPT, encoding="utf-8")
    return [*launch, str(script), *map(str, files)]


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Recipe, Path]]:
    """Name → a recipe and the folder of the run that two processes made of it."""
    folder = tmp_path_factory.mktemp("together")
    shapes = write_shapes(
        folder / "data", ShapesConfig(size=48, min_size=0.15, train_images=16, val_images=37), progress=False
    )
    chosen = recipes(shapes, tiny_coco.write(folder / "coco"))
    files = []
    for name, recipe in chosen.items():
        files.append(folder / f"{name}.json")
        files[-1].write_text(json.dumps(recipe_to_dict(recipe)), encoding="utf-8")
    done = subprocess.run(torchrun(files), capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return {name: (recipe, folder / name) for name, recipe in chosen.items()}


@pytest.mark.parametrize("row", ["detr", "deformable-detr-two-stage", "deformable-detr-refine"])
def test_two_processes_or_two_pieces_equal_one(
    together: dict[str, tuple[Recipe, Path]], tmp_path: Path, row: str
) -> None:
    recipe, folder = together[row]
    whole, halves = (replace(recipe, train=replace(recipe.train, accumulate=n)) for n in (1, 2))
    one = train(whole, tmp_path / "one", progress=False)
    train(halves, tmp_path / "pieces", progress=False)
    alone, both, pieces = (
        checkpoint.read(f / "last.pt")["model"] for f in (tmp_path / "one", folder, tmp_path / "pieces")
    )
    # Where a gradient is nothing but rounding, AdamW makes a step of it as of any other. So it is for whole biases (the softmax
    # does not see one of its keys, nor a group norm one of its input), and now and then for a single weight.
    blind = [
        name
        for name in alone
        if name.endswith("in_proj_bias") or (name.startswith("input_proj") and name.endswith("0.bias"))
    ]
    for other in (both, pieces):
        gaps = {name: (value - other[name]).abs() for name, value in alone.items()}
        assert max(float(gap.max()) for gap in gaps.values()) <= 2e-5
        seen = torch.cat([gap.flatten() for name, gap in gaps.items() if name not in blind])
        assert (seen > 1e-6).float().mean() < 1e-4
    start = train_lines(tmp_path / "one")[0]
    assert start["loss"] > train_lines(tmp_path / "one")[-1]["loss"]  # it learns at all
    for mine, theirs in zip(train_lines(tmp_path / "one"), train_lines(folder), strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], rel=1e-5)
        assert mine["gradient_norm"] == pytest.approx(theirs["gradient_norm"], rel=1e-3)
    evaluated = [line for line in read_log(folder / "log.jsonl") if line["kind"] == "evaluate"]
    assert len(evaluated) == 1
    assert {k: v for k, v in evaluated[0].items() if k in one} == pytest.approx(one, abs=1e-4)


def train_lines(folder: Path) -> list[dict[str, Any]]:
    return [line for line in read_log(folder / "log.jsonl") if line["kind"] == "train"]


def test_each_picture_is_evaluated_once_and_one_process_writes(together: dict[str, tuple[Recipe, Path]]) -> None:
    _, folder = together["whole"]
    found = json.loads((folder / "detections.json").read_text(encoding="utf-8"))["detections"]
    by_picture: dict[int, int] = {}
    for detection in found:
        by_picture[detection["image_id"]] = by_picture.get(detection["image_id"], 0) + 1
    assert len(by_picture) == 37
    assert len(set(by_picture.values())) == 1  # no picture twice
    lines = read_log(folder / "log.jsonl")
    assert [line["kind"] for line in lines].count("start") == 1
    assert lines[0]["processes"] == 2


def test_all_processes_evaluate_the_model_that_is_saved(together: dict[str, tuple[Recipe, Path]]) -> None:
    """Batch norms that are trained count each process's own pictures; detections are the checkpoint's all the same."""
    recipe, folder = together["batch-norms"]
    loaded = checkpoint.load_model(folder / "best.pt")
    data = CocoDetection(CocoFolder.find(recipe.data.folder, "val"), eval_transform(recipe.augment))
    alone = results_of(dict(detect(loaded.model, data, batch=2, workers=0)), data)
    both = json.loads((folder / "detections.json").read_text(encoding="utf-8"))["detections"]
    for mine, theirs in zip(by_picture(alone), by_picture(both), strict=True):
        assert mine[0] == theirs[0]
        assert mine[1] == pytest.approx(theirs[1], abs=1e-4)


def by_picture(found: list[dict[str, Any]]) -> list[tuple[int, list[float]]]:
    scores: dict[int, list[float]] = {}
    for one in found:
        scores.setdefault(one["image_id"], []).append(one["score"])
    return [(image_id, sorted(scores[image_id])) for image_id in sorted(scores)]


def test_a_process_without_objects_keeps_nobody_waiting(together: dict[str, tuple[Recipe, Path]]) -> None:
    recipe, folder = together["empty"]
    assert checkpoint.read(folder / "last.pt")["step"] == 6
    assert all(line["loss"] > 0 and "loss/class/hint" in line for line in train_lines(folder))
    order = order_of(recipe.train, CocoDetection(CocoFolder.find(recipe.data.folder, "train")))
    seen = [[index for _, index, *_ in order.epoch(epoch).batches[0]] for epoch in range(6)]
    places = [batch.index(1) for batch in seen if 1 in batch]
    assert set(places) == {0, 1}  # the picture without objects was in turn with both


def test_a_run_that_loses_a_process_goes_on_by_itself(together: dict[str, tuple[Recipe, Path]], tmp_path: Path) -> None:
    """SIGKILL of one of the two: torchrun starts both anew, and the run ends as if nothing had happened."""
    recipe, whole = together["whole"]
    file = tmp_path / "killed.json"
    file.write_text(json.dumps(recipe_to_dict(recipe)), encoding="utf-8")
    log = tmp_path / "killed" / "log.jsonl"
    with subprocess.Popen(torchrun([file], "--max-restarts", "1"), stderr=subprocess.PIPE, text=True) as agent:
        deadline = time.monotonic() + 200
        while agent.poll() is None and time.monotonic() < deadline:
            if log.exists() and any(line["step"] >= 7 for line in read_log(log)):
                break
            time.sleep(0.005)
        assert agent.poll() is None, "the run ended before it could be disturbed"
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children").read_text(encoding="utf-8").split()
        assert len(children) == 2
        os.kill(int(children[1]), signal.SIGKILL)
        _, said = agent.communicate(timeout=200)
        assert agent.returncode == 0, said[-9000:]
    a, b = checkpoint.read(tmp_path / "killed" / "last.pt"), checkpoint.read(whole / "last.pt")
    assert a["step"] == b["step"] == 16
    for key in ("model", "average"):
        assert all(torch.equal(a[key][name], value) for name, value in b[key].items())
    steps = [line["step"] for line in read_log(log) if line["kind"] == "train"]
    assert steps == list(range(1, 17))


def test_processes_do_not_share_one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with (
        pytest.raises(ValueError, match=r"device='cuda:0' would be one GPU for all processes: leave --device out"),
        world("cuda:0"),
    ):
        pass


def test_processes_of_another_launcher_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each would train by itself, and write into the same folder."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with (
        pytest.raises(ValueError, match="WORLD_SIZE=2, but LOCAL_RANK is not set: start the processes with torchrun"),
        world("cpu"),
    ):
        pass


def test_a_process_that_torchrun_started_alone_goes_the_way_of_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So one GPU is enough to try NCCL and DistributedDataParallel; the bits are those of a run without them."""
    folder = write_shapes(
        tmp_path / "data", ShapesConfig(size=48, min_size=0.15, train_images=8, val_images=2), progress=False
    )
    recipe = tiny_recipe(folder, "deformable-detr-two-stage", epochs=1, batch=4, accumulate=2)
    train(recipe, tmp_path / "alone", progress=False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    place = {"LOCAL_RANK": 0, "RANK": 0, "WORLD_SIZE": 1, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    for name, value in place.items():
        monkeypatch.setenv(name, str(value))
    wrapped: list[type] = []
    original = DistributedDataParallel.forward

    def forward(self: DistributedDataParallel, *inputs: Any, **named: Any) -> Any:
        wrapped.append(type(self.module))
        return original(self, *inputs, **named)

    monkeypatch.setattr(DistributedDataParallel, "forward", forward)
    train(recipe, tmp_path / "joined", progress=False)
    assert len(wrapped) == 4
    one, other = (checkpoint.read(tmp_path / name / "last.pt")["model"] for name in ("alone", "joined"))
    assert all(torch.equal(value, other[name]) for name, value in one.items())
