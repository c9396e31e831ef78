"""The command line: what works prints what it did, and every mistake gets one line and exit code 2."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_coco
import torch
from PIL import Image

from ddetr_lite.cli import COMMANDS, main
from ddetr_lite.cli.training import RECIPES
from ddetr_lite.convert import COCO_CATEGORIES, from_official
from ddetr_lite.datasets.pictures import read_picture
from ddetr_lite.datasets.shapes import HARD, ShapesConfig
from ddetr_lite.engine import checkpoint
from ddetr_lite.engine.evaluate import METRICS
from ddetr_lite.engine.predict import predict as find
from ddetr_lite.engine.recipes import Recipe, recipe, recipe_names, recipe_to_dict
from ddetr_lite.models.presets import ROWS, build, model_config
from ddetr_lite.set_prediction.boxes import box_iou

SMALLEST = ["--dim", "32", "--heads", "2", "--hidden", "32", "--queries", "5", "--encoder-layers", "1"]
SMALLEST += ["--decoder-layers", "2", "--epochs", "1", "--batch", "2", "--workers", "0", "--log-every", "1"]


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_coco.write(tmp_path_factory.mktemp("coco"))


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained DETR of two classes."""
    torch.manual_seed(0)
    small: Any = model_config("detr", "small")
    config = replace(small, dim=32, heads=2, hidden=32, queries=5)
    path = tmp_path_factory.mktemp("model") / "model.pt"
    chosen = replace(recipe("shapes", "detr"), model=config)
    checkpoint.save_model(path, build(config, 2).eval(), ["car", "brush"], {"recipe": recipe_to_dict(chosen)})
    return path


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(name in text for name in COMMANDS)
    for words in (
        ["train", "--help"],
        ["train", "shapes", "--help"],
        ["evaluate", "--help"],
        ["data", "shapes", "--help"],
    ):
        assert main(words) == 0
    text = capsys.readouterr().out
    assert "--schedule" in text
    assert all(row in text for row in ROWS)


def test_help_says_what_each_recipe_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    told = {words[0]: words[1:] for line in lines if line.startswith("  ") for words in [line.split()]}
    assert list(told) == list(RECIPES)
    assert set(told) == set(recipe_names())
    assert min(map(len, told.values())) > 5


def test_who_asks_for_help_does_not_wait_for_torch() -> None:
    code = "import sys; from ddetr_lite.cli import main; main(['--help']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_a_reader_that_has_seen_enough_is_no_mistake() -> None:
    """The first line is read, and then the pipe is closed."""
    code = "from ddetr_lite.cli import main, COMMANDS\n"
    code += (
        "COMMANDS['course'] = lambda words: [print('x' * 9999) for _ in range(99)]\nraise SystemExit(main(['course']))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as running:
        assert running.stdout is not None
        assert running.stderr is not None
        running.stdout.readline()
        running.stdout.close()
        assert running.stderr.read() == b""
    assert running.returncode == 141


def test_no_bar_is_drawn_into_a_file(model_file: Path, coco: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = ["--folder", str(coco), "--split", "val", "--size-bands", "32", "96", "--workers", "0"]
    assert main(["evaluate", str(model_file), *words]) == 0
    assert capfd.readouterr().err == ""


def test_train_evaluate_and_predict(coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    words = ["train", "shapes", "--model", "detr", "--folder", str(coco), "--out", str(run), *SMALLEST]
    words += ["--size-bands", "32", "96"]
    assert main(words) == 0, capsys.readouterr().err
    about = {"recipe.json", "log.jsonl", "watched.jsonl", "detections.json", "curves.png", "report.html", ".lock"}
    assert {p.name for p in run.iterdir()} == about | {"last.pt", "best.pt"}
    chosen = json.loads((run / "recipe.json").read_text(encoding="utf-8"))
    assert chosen["model"]["architecture"] == "detr"
    assert chosen["train"]["batch"] == 2
    assert Image.open(run / "curves.png").size[0] > 300

    assert main(["train", "shapes", "--out", str(run), "--resume"]) == 0  # nothing left to do, and nothing lost
    metrics = tmp_path / "metrics.json"
    assert main(["evaluate", str(run / "best.pt"), "--workers", "0", "--out", str(metrics)]) == 0
    assert json.loads(metrics.read_text(encoding="utf-8"))["AP"] >= 0
    capsys.readouterr()

    picture, out = coco / "val2017" / "a.jpg", tmp_path / "found"
    assert main(["predict", str(run / "best.pt"), str(picture), "--threshold", "0", "--out", str(out)]) == 0
    assert "5 objects" in capsys.readouterr().out
    (found,) = json.loads((out / "detections.json").read_text(encoding="utf-8"))
    assert (found["height"], found["width"], len(found["objects"])) == (40, 60, 5)
    assert set(found["objects"][0]) == {"label", "score", "box"}
    assert Image.open(out / "a.boxes.png").size == (640, 427)  # 60 × 40, larger, and nothing around it


def test_predict_shows_what_scores_as_was_best_in_validation(
    model_file: Path, coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    loaded, picture = checkpoint.load_model(model_file), coco / "val2017" / "a.jpg"
    scores = [found.score for found in find(loaded, read_picture(picture), threshold=0.0)]
    assert find(loaded, read_picture(picture)) == [
        f for f in find(loaded, read_picture(picture), 0.0) if f.score >= 0.5
    ]
    run = tmp_path / "runs" / "mine"
    for folder in (run, tmp_path / "elsewhere"):
        checkpoint.save_model(
            folder / "best.pt", loaded.model, loaded.classes, {**loaded.about, "threshold": scores[2]}
        )
    (run / "log.jsonl").write_text("", encoding="utf-8")
    for given, out in ((run, run), (run / "best.pt", run), (tmp_path / "elsewhere" / "best.pt", Path("runs"))):
        assert main(["predict", str(given), str(picture)]) == 0
        text = capsys.readouterr().out
        assert f"Shown is what scores at least {scores[2]:.2f}" in text
        assert "a.jpg: 3 objects" in text
        written = out / "predictions" / ("" if out == run else "best") / "detections.json"
        assert len(json.loads(written.read_text(encoding="utf-8"))[0]["objects"]) == 3
    assert main(["predict", str(run), str(picture), "--threshold", "0"]) == 0
    text = capsys.readouterr().out
    assert "Shown is what scores at least 0.00.\n" in text
    assert f"a.jpg: {len(scores)} objects" in text


@pytest.fixture(scope="module")
def detector(model_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same DETR, validated on the split "test" by shares of the picture."""
    loaded = checkpoint.load_model(model_file)
    about = {"recipe": {"data": {"val_split": "test", "size_bands": (0.2, 0.4)}, "augment": {"eval_short_side": 0}}}
    path = tmp_path_factory.mktemp("detector") / "detr.pt"
    checkpoint.save_model(path, loaded.model, loaded.classes, about)
    return path


def test_evaluate_takes_the_split_and_the_sizes_of_the_training(
    coco: Path, detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", str(detector), "--folder", str(coco), "--workers", "0"]
    assert main(words) == 2
    assert "test" in capsys.readouterr().err  # the split that it was validated on, which this folder does not have
    assert main([*words, "--split", "val"]) == 2
    said = capsys.readouterr()
    assert "size_bands=(0.2, 0.4) are shares of the picture, but pictures differ in size" in said.err
    assert "give pixels, for example --size-bands 32 96" in said.err
    assert main([*words, "--split", "val", "--size-bands", "32", "96"]) == 0
    capsys.readouterr()
    for option, value in (("batch", "0"), ("batch", "-1"), ("workers", "-1")):
        assert main([*words, f"--{option}", value]) == 2
        assert f"--{option} {value} must be at least" in capsys.readouterr().err


def test_predict_keeps_pictures_of_one_name_apart(detector: Path, tmp_path: Path) -> None:
    names = ["a/x.png", "b/x.png", "b/x.jpg", "b/x-2.png"]
    for i, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (40, 30 + i), (60 * i, 0, 0)).save(tmp_path / name)
    out = tmp_path / "out"
    assert main(["predict", str(detector), *(str(tmp_path / name) for name in names), "--out", str(out)]) == 0
    drawn = sorted(path.name for path in out.glob("*.png"))
    assert drawn == ["x-2-2.boxes.png", "x-2.boxes.png", "x-3.boxes.png", "x.boxes.png"]
    found = json.loads((out / "detections.json").read_text(encoding="utf-8"))
    assert [one["height"] for one in found] == [30, 31, 32, 33]
    assert main(["predict", str(detector), str(tmp_path / "b"), "--out", str(tmp_path / "folder")]) == 0
    assert len(list((tmp_path / "folder").glob("*.png"))) == 3


def test_a_folder_stands_for_what_is_in_it(detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, pictures = tmp_path / "run", tmp_path / "pictures"
    run.mkdir()
    pictures.mkdir()
    shutil.copy(detector, run / "best.pt")
    words = ["predict", str(run), str(pictures), "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert "pictures holds no pictures (.bmp, .gif" in capsys.readouterr().err
    Image.new("RGB", (40, 30)).save(pictures / "a.JPG")
    for hidden in ("notes.txt", "._a.JPG"):
        (pictures / hidden).write_text("no picture", encoding="utf-8")
    assert main(words) == 0
    assert main(["evaluate", str(tmp_path), "--folder", str(tmp_path)]) == 2
    assert f"{tmp_path} is no run: there is no best.pt in it" in capsys.readouterr().err
    (tmp_path / "last.pt").touch()
    assert main(["evaluate", str(tmp_path), "--folder", str(tmp_path)]) == 2
    assert "has not been evaluated yet: go on with it (--resume), or name its last.pt" in capsys.readouterr().err


def test_a_fine_tuned_detector_sees_pictures_of_the_size_that_it_knows(
    model_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begun: list[Recipe] = []
    monkeypatch.setattr("ddetr_lite.cli.training._run", lambda chosen, folder, resume: begun.append(chosen))
    loaded = checkpoint.load_model(model_file)
    for sizes in ({"eval_short_side": 160, "short_sides": [128, 160], "max_side": 208}, {}):
        about = {"recipe": {**loaded.about["recipe"], "augment": {**loaded.about["recipe"]["augment"], **sizes}}}
        checkpoint.save_model(tmp_path / "source.pt", loaded.model, loaded.classes, about)
        assert main(["train", "coco", "--start-from", str(tmp_path / "source.pt")]) == 0
    known, unknown = (one.augment for one in begun)
    assert (known.short_sides, known.eval_short_side, known.max_side) == ((128, 160), 160, 208)
    assert unknown == recipe("coco", "detr").augment
    said = capsys.readouterr().out
    assert "resized as the checkpoint's were: short sides (128, 160), 160 in evaluation" in said
    assert "learned from pictures as they are, without resizing" in said
    assert main(["train", "coco", "--start-from", str(tmp_path / "source.pt"), "--eval-short-side", "96"]) == 0
    assert begun[-1].augment.eval_short_side == 96
    about = {"recipe": {"augment": {"eval_short_side": 160, "short_sides": [128, 160], "max_side": 208}}}
    checkpoint.save_model(tmp_path / "source.pt", loaded.model, loaded.classes, about)
    capsys.readouterr()
    sides = ["--short-sides", "288", "320", "--eval-short-side", "320"]
    for words, largest in (([], 1333), (["--max-side", "400"], 400)):
        assert main(["train", "coco", "--start-from", str(tmp_path / "source.pt"), *sides, *words]) == 0
        chosen = begun[-1].augment
        assert (chosen.short_sides, chosen.eval_short_side, chosen.max_side) == ((288, 320), 320, largest)
    assert "resized as the checkpoint's" not in capsys.readouterr().out
    assert main(["train", "coco", "--start-from", str(tmp_path / "source.pt"), "--max-side", "150"]) == 2
    assert "a short side of 160 cannot be reached: no side may be above max_side=150" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    (tmp_path / "source.pt").rename(tmp_path / "run" / "best.pt")
    assert main(["train", "coco", f"--start_from={tmp_path / 'run'}"]) == 0  # a run's folder, and tyro's other hyphen
    assert begun[-1].model == loaded.model.config


def test_predict_turns_a_photo_as_its_file_says(detector: Path, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (48, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "upright.png")
    lying = Image.fromarray(np.rot90(pixels).copy())
    exif = lying.getexif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    lying.save(tmp_path / "phone.png", exif=exif)
    out = tmp_path / "out"
    pictures = [str(tmp_path / name) for name in ("upright.png", "phone.png")]
    assert main(["predict", str(detector), *pictures, "--threshold", "0", "--out", str(out)]) == 0
    upright, phone = json.loads((out / "detections.json").read_text(encoding="utf-8"))
    assert (phone["height"], phone["width"]) == (48, 32)
    assert phone["objects"] == upright["objects"]


def test_predict_goes_on_after_a_broken_picture(
    detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
    for name in ("good.png", "cut.png", "last.png"):
        Image.fromarray(pixels).save(tmp_path / name)
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:-500])  # its head can be read
    (tmp_path / "empty.jpg").touch()
    out = tmp_path / "out"
    files = [str(tmp_path / name) for name in ("good.png", "cut.png", "empty.jpg", "last.png")]
    assert main(["predict", str(detector), *files, "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert "Shown is what scores at least 0.50.\n" in said.out
    assert "cut.png: cannot be read, left out" in said.out
    assert "2 of 4 pictures were left out: picture" in said.err
    assert "cut.png cannot be read" in said.err
    assert "empty.jpg cannot be read" in said.err
    kept = json.loads((out / "detections.json").read_text(encoding="utf-8"))
    assert [Path(one["file"]).name for one in kept] == ["good.png", "last.png"]
    assert main(["predict", str(detector), str(tmp_path / "none.png"), "--out", str(tmp_path / "no")]) == 2
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize("command", ["report", "explain"])
def test_a_folder_that_is_named_has_to_exist(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, str(tmp_path), "--folder", str(tmp_path / "none")]) == 2
    assert f"--folder {tmp_path / 'none'} does not exist" in capsys.readouterr().err


def test_predict_says_which_folders_it_does_not_look_into(
    detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pictures = tmp_path / "pictures"
    for name in ("a.png", "inside/b.png"):
        (pictures / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30)).save(pictures / name)
    words = ["predict", str(detector), str(pictures), "--out", str(pictures), "--threshold", "0.99"]
    for _ in range(2):  # the second time its own picture with boxes lies there, too
        assert main(words) == 0
        said = capsys.readouterr().out
        assert (
            f"only its own pictures are looked at; those of its folders have to be named themselves: {pictures}/inside"
            in said
        )
        assert "a.png: 0 objects" in said
        assert "boxes.png:" not in said
    (pictures / "a.png").unlink()
    assert main(words) == 2
    assert "holds no pictures" in (said := capsys.readouterr().err)
    assert "inside" in said
    assert main([*words[:3], "--out", str(pictures / "inside/b.png")]) == 2


def test_an_error_of_a_loading_process_is_one_sentence(
    coco: Path, detector: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "coco"
    shutil.copytree(coco, folder)
    picture = next((folder / "val2017").glob("*.jpg"))
    picture.write_bytes(picture.read_bytes()[:100])
    words = ["evaluate", str(detector), "--folder", str(folder), "--split", "val", "--size-bands", "32", "96"]
    assert main([*words, "--workers", "1"]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "cannot be read" in said
    assert picture.name in said
    assert "Traceback" not in said


def test_generated_data_is_made_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "shapes", "--folder", str(tmp_path / "s"), "--size", "64", "--train-images", "3"]
    words += ["--val-images", "2", "--classes", "circle", "star"]
    assert main(words) == 0
    assert main(words) == 0
    assert "is ready" in capsys.readouterr().out
    assert len(list((tmp_path / "s" / "train").iterdir())) == 3


def test_the_hard_form_is_another_folder_with_the_same_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    few = ["--train-images", "1", "--val-images", "1"]
    assert main(["data", "shapes-hard", *few]) == 0
    assert main(["data", "shapes-hard", "--size", "128", "--folder", "data/shapes-hard-128", *few]) == 0
    assert main(["data", "shapes", "--size", "96", *few]) == 0
    assert capsys.readouterr().out.count("is ready") == 3
    found = {}
    for folder in Path("data").iterdir():
        content = json.loads((folder / "annotations" / "instances_val.json").read_text(encoding="utf-8"))
        found[folder.name] = (content["images"][0]["width"], len(content["categories"]))
    assert found == {"shapes-hard": (256, 16), "shapes-hard-128": (128, 16), "shapes": (96, 8)}


@pytest.mark.parametrize(("name", "config"), [("shapes", ShapesConfig()), ("shapes-hard", HARD)])
def test_training_makes_the_set_of_its_recipe_where_it_is_missing(
    name: str, config: ShapesConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    trained: list[str] = []

    def write(folder: str, config: ShapesConfig, processes: int) -> None:
        made.append((folder, config))
        Path(folder).mkdir(parents=True)

    def train(recipe: Recipe, *_: Any, **__: Any) -> dict[str, float]:
        trained.append(recipe.data.folder)
        return {}

    monkeypatch.setattr("ddetr_lite.datasets.shapes.write_shapes", write)
    monkeypatch.setattr("ddetr_lite.engine.train.train", train)
    monkeypatch.chdir(tmp_path)
    assert main(["train", name, "--folder", "data/mine"]) == 0
    assert made == []  # a folder of the user's own is never filled
    assert main(["train", name]) == 0
    assert main(["train", name]) == 0
    assert made == [(f"data/{name}", config)]
    assert trained == ["data/mine", f"data/{name}", f"data/{name}"]


def test_it_is_said_what_an_official_file_does_not_say(
    model_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    run.mkdir()
    shutil.copyfile(model_file, run / "best.pt")
    assert main(["convert", str(run), str(tmp_path / "x.pth")]) == 0  # a run, not Hugging Face's folder
    assert "The authors have ResNets only, and this model has small" in capsys.readouterr().out
    loaded = checkpoint.load_model(model_file)
    state = torch.load(tmp_path / "x.pth", weights_only=True)["model"]
    again = from_official(state, build(loaded.model.config, 2, load_backbone=False))
    assert all(torch.equal(value, loaded.model.state_dict()[key]) for key, value in again.state_dict().items())


def test_weights_go_out_and_come_back(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    base = model_config("deformable-detr-two-stage")
    small = {"dim": 32, "hidden": 32, "encoder_layers": 1, "decoder_layers": 2, "queries": 7}
    backbone = replace(base.backbone, name="resnet18", weights="none")
    model = build(replace(base, backbone=backbone, **small), 80, load_backbone=False).eval()  # type: ignore[arg-type]
    checkpoint.save_model(tmp_path / "a.pt", model, list(COCO_CATEGORIES), {})
    official = tmp_path / "new" / "official.pth"
    assert main(["convert", str(tmp_path / "a.pt"), str(official)]) == 0
    options = ["--queries", "7"]
    assert f"to read it back, give {' '.join(options)}." in capsys.readouterr().out
    assert main(["convert", str(official), str(tmp_path / "b.pt"), *options]) == 0
    assert "The 91 logits are taken for COCO's ids, 80 of which are classes; --no-coco" in capsys.readouterr().out
    assert main(["convert", str(official), str(tmp_path / "all.pt"), *options, "--no-coco"]) == 0
    assert "91 classes" in capsys.readouterr().out
    assert main(["convert", str(tmp_path / "b.pt"), str(tmp_path / "hub")]) == 0
    assert main(["convert", str(tmp_path / "hub"), str(tmp_path / "c.pt")]) == 0
    assert "80 classes" in capsys.readouterr().out
    assert (tmp_path / "hub" / "config.json").exists()
    images = [torch.rand(3, 64, 96)]
    first = model.outputs(model.batch(images))
    for name in ("b.pt", "c.pt"):
        loaded = checkpoint.load_model(tmp_path / name)
        assert loaded.classes == list(COCO_CATEGORIES)
        again = loaded.model.outputs(loaded.model.batch(images))
        assert torch.allclose(first.logits, again.logits, atol=1e-5)
        assert torch.allclose(first.boxes, again.boxes, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["trian"], "did you mean 'train'"),
        (["train"], "RECIPE is missing"),
        (["bench", "step", "--layers", "1"], "--layers 1 must be at least 2"),
        (["train", "shaps"], "did you mean 'shapes'"),
        (["train", "shapes", "--model", "detrr"], "did you mean 'detr'"),
        (["train", "shapes", "--model"], "--model needs a value"),
        (["train", "shapes", "--lrr", "1"], "did you mean --lr"),
        (["train", "shapes", "--lr", "abc"], "--lr"),
        (["train", "shapes", "--lr", "7"], "lr=7.0"),
        (["train", "shapes", "--schedule", "cos"], "invalid choice 'cos'"),
        (
            ["train", "shapes", "--model", "detr", "--levels", "2"],
            "--levels is an option of Deformable DETR, not of this model",
        ),
        (["train", "shapes", "--folder", "no/where", "--out", "OUT"], "data folder no/where does not exist"),
        (
            ["train", "shapes", "--device", "cuda:7", "--folder", "COCO", "--out", "OUT"],
            "device 'cuda:7' cannot be used",
        ),
        (
            ["train", "coco", "--folder", "COCO", "--out", "OUT", "--backbone.name", "resnet5"],
            "did you mean 'resnet50'",
        ),
        (["train", "coco", "--folder", "COCO", "--out", "OUT", "--backbone.weights", "w.pth"], "w.pth is no file"),
        (["train", "shapes", "--resume", "--out", "OUT"], "nothing to resume"),
        (["train", "shapes", "--resume", "--model=detr"], "--model cannot change when a run goes on"),
        (["train", "shapes", "--start_from", "none.pt"], "checkpoint none.pt does not exist"),
        (
            ["train", "shapes", "--folder", "COCO", "--out", "OUT", "--queries", "1"],
            "has 2 objects, the model only 1 queries",
        ),
        (["evaluate", "none.pt"], "checkpoint none.pt does not exist"),
        (["evaluate", "MODEL", "--folder", "no/where"], "data folder no/where does not exist"),
        (["evaluate", "MODEL", "--folder", "COCO", "--split", "tset"], "no annotations for split 'tset'"),
        (["evaluate"], "checkpoint"),
        (
            ["evaluate", "MODEL", "--folder", "COCO", "--size-bands", "20", "8"],
            "size_bands=(20.0, 8.0) must be positive",
        ),
        (["evaluate", "MODEL", "--size-bands", "3"], "parsing --size-bands: expected FLOAT FLOAT, got '3'; `"),
        (["convert", "none.pth", "OUT.pt", "--heads", "x"], "parsing --heads: expected INT, got 'x'; `"),
        (["convert", "none.pth", "OUT.pt", "--heads", "-4"], "--heads -4 must be at least 1"),
        (["predict", "MODEL", "none.png"], "picture none.png does not exist"),
        (["predict", "MODEL", "MODEL"], "cannot be read"),
        (["predict", "MODEL"], "at least one picture"),
        (["predict", "MODEL", "none.png", "--threshold", "2"], "--threshold 2.0"),
        (["data", "shpes"], "data 'shpes' is unknown"),
        (["data", "shapes", "--sizze", "4"], "did you mean --size"),
        (["data", "shapes", "--classes", "circl", "--folder", "OUT"], "did you mean 'circle'"),
        (["data", "shapes", "--size", "9", "--folder", "OUT"], "ShapesConfig.size is 9"),
        (["convert", "none.pth", "OUT.pt"], "none.pth is no file"),
        (["convert", "MODEL", "OUT.onnx"], "must end in .pt"),
        (["convert", "MODEL", "MODEL"], "exists already"),
    ],
)
def test_mistakes_get_one_line_and_exit_code_2(
    words: list[str],
    said: str,
    coco: Path,
    model_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)  # where `runs` and `data` begin
    places = {"COCO": str(coco), "MODEL": str(model_file), "OUT": str(tmp_path / "out")}
    words = [places.get(w, w.replace("OUT.", f"{tmp_path}/out.")) for w in words]
    assert main(words) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    message = [line for line in lines if line.startswith("ddetr-lite: ")]
    assert len(message) == 1
    assert said in message[0]
    assert not (tmp_path / "out" / "log.jsonl").exists()  # nothing is left that would stand in the way of the next try


def test_a_run_whose_recipe_cannot_be_read_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "recipe.json").write_text('{"model": {"architecture": "detr"}}', encoding="utf-8")
    assert main(["train", "shapes", "--out", str(tmp_path), "--resume"]) == 2
    assert (
        f"{tmp_path / 'recipe.json'} cannot be used: the recipe is not whole: it lacks 'data'"
        in capsys.readouterr().err
    )


def test_ctrl_c_is_exit_code_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def stopped(words: list[str]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setitem(COMMANDS, "train", stopped)
    assert main(["train"]) == 130
    assert "--resume" in capsys.readouterr().err


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("ddetr-lite ")


def test_repeats_are_left_out_where_asked_for(
    detector: Path, coco: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With an IoU of 0 no two boxes of a class that touch are left; where nothing is sure, the best score is said."""
    picture = str(next(coco.rglob("*.jpg")))
    counts = []
    for nms in ([], ["--nms", "0"]):
        words = ["predict", str(detector), picture, "--threshold", "0", "--out", str(tmp_path / "out"), *nms]
        assert main(words) == 0
        (one,) = json.loads((tmp_path / "out" / "detections.json").read_text(encoding="utf-8"))
        counts.append(len(one["objects"]))
        for number, first in enumerate(one["objects"]):
            for second in one["objects"][number + 1 :] if nms else []:
                pair = torch.tensor([first["box"], second["box"]])
                assert first["label"] != second["label"] or box_iou(pair[0], pair[1]) == 0
    assert 0 < counts[1] < counts[0]
    capsys.readouterr()
    assert main(["predict", str(detector), picture, "--threshold", "1", "--out", str(tmp_path / "out")]) == 0
    assert "the best score is 0." in capsys.readouterr().out
    for command in ("predict", "evaluate"):
        words = [str(detector), picture] if command == "predict" else [str(detector)]
        assert main([command, *words, "--nms", "2"]) == 2
        assert "--nms 2.0 must lie in 0..1" in capsys.readouterr().err


def test_it_is_said_when_the_best_model_is_not_the_last(
    coco: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scores = iter((0.2, 0.4, 0.3, 0.1, 0.1))
    monkeypatch.setattr("ddetr_lite.engine.train.ap_of", lambda *given: dict.fromkeys(METRICS, next(scores)))
    for epochs, told in ((3, True), (2, False)):
        run = tmp_path / str(epochs)
        words = ["train", "shapes", "--model", "detr", "--folder", str(coco), "--out", str(run), *SMALLEST]
        assert main([*words, "--size-bands", "32", "96", "--epochs", str(epochs), "--evaluate-every", "1"]) == 0
        assert ("best.pt is of epoch 2: AP 0.400" in capsys.readouterr().out) == told
