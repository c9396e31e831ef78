"""What is made of a run's folder: the report, the comparison, and what the trainer notes of where queries look."""

import json
import shlex
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import tiny_coco
import torch
from matplotlib.figure import Figure

from ddetr_lite.cli import main
from ddetr_lite.datasets.coco import CocoDetection, CocoFolder
from ddetr_lite.engine.log import read_log
from ddetr_lite.engine.recipes import Recipe, recipe, recipe_names, recipe_to_dict
from ddetr_lite.engine.repeat import command
from ddetr_lite.engine.run_results import read_run
from ddetr_lite.engine.watch import choose_objects, watched_line
from ddetr_lite.models.presets import ROWS, build, config_to_dict, model_config, row_of
from ddetr_lite.plots.compare import comparison, comparison_figure, differing, read_runs, text_table
from ddetr_lite.plots.page import picture
from ddetr_lite.plots.report import evaluated_pictures, report, write_report
from ddetr_lite.plots.run_pictures import watched_row

NAME = "my & <i> run"
SCRIPT, DOLLARS = "<script>alert('x')</script>", 'R&D "$5" and $6 http://x.y'
SECTIONS = ["numbers", "loss", "precision", "classes", "machine", "skipped", "queries", "errors", "recipe"]
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Tags, attributes and text of a page; every tag that opens must close."""

    def __init__(self, text: str):
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.style = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def check_page(text: str) -> Page:
    """What every report must be: whole, alone, and described."""
    page = Page(text)
    assert [s["id"] for s in page.all("section")] == SECTIONS
    assert {a["href"] for a in page.all("a")} == {f"#{name}" for name in SECTIONS}
    assert not page.all("script")
    assert not page.all("link")
    assert "url(" not in page.style
    assert "@import" not in page.style
    for image in page.all("img"):
        assert str(image["src"]).startswith("data:image/png;base64,")
        assert len(str(image["alt"]).split()) >= 5
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert not any("http" in str(value) for name, value in attributes.items() if name not in ("alt", "src"))
    return page


def log_lines(chosen: Recipe, classes: list[str]) -> list[dict[str, Any]]:
    """The log of two epochs of five steps: losses of two layers, two evaluations, a skipped step."""
    lines: list[dict[str, Any]] = [
        {
            "kind": "start", "step": 0, "recipe": recipe_to_dict(chosen), "classes": classes, "pictures": 20,
            "validation_pictures": 3, "steps_in_all": 10, "parameters": 1_250_000, "device": "x <b>GPU</b>",
            "versions": {"torch": "2.0"},
        }
    ]  # fmt: skip
    for step in range(1, 11):
        losses = {f"loss/{term}{layer}": 3.0 / step for term in ("class", "l1", "giou") for layer in ("/0", "")}
        lines.append(
            {
                "kind": "train", "step": step, "epoch": (step + 4) // 5, "loss": 18.0 / step, **losses, "lr": 1e-3,
                "gradient_norm": 2.0, "pictures_per_second": 10.0 * step, "train_seconds": 30.0 * step,
                "memory_bytes": 2**30,
            }
        )  # fmt: skip
        if step % 5 == 0:
            metrics = {"AP": 0.6 - step / 50, "AP50": 0.7, "AP75": 0.3, "AP_small": -1.0, "AP_medium": 0.5}
            metrics |= {"AP_large": 0.75, f"AP/{classes[0]}": 0.25, f"AP/{classes[1]}": -1.0}
            lines.append(
                {"kind": "evaluate", "step": step, "epoch": step // 5, "train_seconds": 30.0 * step, **metrics}
            )
    lines.append({"kind": "skip", "step": 7, "epoch": 2, "pictures": [42, 7], "reason": "loss is <nan>"})
    return lines


def write_log(folder: Path, lines: list[dict[str, Any]]) -> Path:
    folder.mkdir(parents=True)
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny real-looking data whose classes have hostile names, in a folder with one as well."""
    content = tiny_coco.content()
    content["categories"] = [{"id": 90, "name": SCRIPT}, {"id": 3, "name": DOLLARS}]
    return tiny_coco.write(tmp_path_factory.mktemp("a & b <i>"), content)


@pytest.fixture(scope="module")
def validation(data: Path) -> CocoDetection:
    return CocoDetection(CocoFolder.find(data, "val"))


@pytest.fixture(scope="module")
def run(data: Path, validation: CocoDetection, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that a run writes."""
    chosen = recipe("shapes", "deformable-detr")
    chosen = replace(chosen, data=replace(chosen.data, folder=str(data)), train=replace(chosen.train, epochs=2))
    folder = write_log(tmp_path_factory.mktemp("runs") / NAME, log_lines(chosen, validation.classes))
    found = [
        {"image_id": 42, "category_id": 90, "bbox": [50, 30, 10, 10], "score": 0.9},  # wrong place
        {"image_id": 42, "category_id": 90, "bbox": [5, 5, 20, 10], "score": 0.8},  # wrong class
        {"image_id": 1000, "category_id": 3, "bbox": [0, 0, 15, 15], "score": 0.7},  # correct
    ]
    content = {"epoch": 2, "step": 10, "detections": found}
    (folder / "detections.json").write_text(json.dumps(content), encoding="utf-8")
    torch.manual_seed(0)
    model = build(model_config("deformable-detr", "small"), 2)
    lines = [watched_line(model, validation, choose_objects(validation), epoch, 5 * epoch) for epoch in (1, 2)]
    (folder / "watched.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder


def test_the_report_has_all_that_the_folder_has(run: Path, data: Path) -> None:
    path = write_report(run)
    assert path == run / "report.html"
    page = check_page(path.read_text(encoding="utf-8"))
    # Hostile names are text, as they are.
    assert SCRIPT in page.text
    assert DOLLARS in page.text
    assert "a & b <i>" in page.text
    assert "x <b>GPU</b>" in page.text
    assert "loss is <nan>" in page.text
    for told in (f"shapes: {NAME}", "deformable-detr", "1.25 million parameters", "5 min", "1.00 GiB", "2 of 2"):
        assert told in page.text, told
    assert "0.500" in page.text  # the best AP is not the last one
    assert 'class="missing"' not in path.read_text(encoding="utf-8")
    alts = [str(image["alt"]) for image in page.all("img")]
    # Curves, watched objects, kinds of error, pictures: 42, and 1000 with an object without area, which nothing can find.
    assert len(alts) == 5 + 2 + 1 + 2
    assert any("0 correct" not in alt and "1 class, 1 place" in alt for alt in alts)
    assert sum("points its query looks at" in alt for alt in alts) == 2


def test_a_run_that_only_has_its_log(run: Path, tmp_path: Path) -> None:
    for name in ("detections.json", "watched.jsonl"):
        assert name in check_page(report(read_run(write_log(tmp_path / name, read_log(run / "log.jsonl"))))).text
    cut_off = write_log(tmp_path / "cut", read_log(run / "log.jsonl"))
    (cut_off / "detections.json").write_text('{"epoch": 1, "detec', encoding="utf-8")
    (cut_off / "watched.jsonl").write_text('{"epoch": 1, "objects": []}\n{"epo', encoding="utf-8")
    check_page(report(read_run(cut_off)))


@pytest.mark.parametrize("kept", [1, 2, 5])
def test_a_run_that_has_just_begun(run: Path, tmp_path: Path, kept: int) -> None:
    lines = read_log(run / "log.jsonl")[:kept]
    page = check_page(report(read_run(write_log(tmp_path / "young", lines))))
    assert "has not been evaluated yet" in page.text


def test_a_log_of_which_hardly_anything_is_known(tmp_path: Path) -> None:
    check_page(report(read_run(write_log(tmp_path / "bare", [{"kind": "train", "step": 1, "loss": 1.0}]))))


def test_data_that_has_gone_or_changed(run: Path, data: Path, tmp_path: Path) -> None:
    gone = report(read_run(run), folder=tmp_path / "gone")
    page = check_page(gone)
    assert page.text.count("cannot be read (data folder") == 2
    assert "--folder" in page.text
    content = tiny_coco.content()
    content["categories"] = [{"id": 90, "name": SCRIPT}, {"id": 3, "name": DOLLARS}]
    content["images"] = [{**image, "id": image["id"] + 1} for image in content["images"]]
    content["annotations"] = []
    changed = check_page(report(read_run(run), folder=tiny_coco.write(tmp_path / "changed", content)))
    assert "has no image id 42" in changed.text


@pytest.mark.parametrize(
    ("changes", "pictures"),
    [({}, 3), ({"limit": 2}, 3), ({"overfit": 2}, 2), ({"overfit": True, "limit": 1}, 1), ({"overfit": True}, 3)],
)
def test_the_pictures_are_those_that_the_run_was_evaluated_on(
    run: Path, data: Path, tmp_path: Path, changes: dict[str, Any], pictures: int
) -> None:
    """`overfit` is a number, and was a switch in older recipes, which `limit` belonged to."""
    lines = read_log(run / "log.jsonl")
    lines[0]["recipe"]["data"] |= changes
    found = evaluated_pictures(read_run(write_log(tmp_path / "run", lines)))
    assert isinstance(found, CocoDetection)
    assert len(found) == pictures
    assert found.folder.images.name == ("train2017" if changes.get("overfit") else "val2017")


def test_a_figure_needs_a_description() -> None:
    with pytest.raises(ValueError, match="says too little"):
        picture(Figure(), "three words only")


def test_watched_panels_show_each_point_and_both_boxes() -> None:
    entry = {
        "true_box": [0.1, 0.1, 0.5, 0.5],
        "box": [0.2, 0.1, 0.6, 0.5],
        "points": [[0.3, 0.3, 0.75], [0.4, 0.2, 0.25]],
    }
    drawn = watched_row(torch.zeros(3, 20, 40, dtype=torch.uint8), [("one", entry), ("two", {**entry, "box": None})])
    first, second, *rest = drawn.axes
    assert [ax.axison for ax in rest] == [False, False]
    assert [len(ax.patches) for ax in (first, second)] == [2, 1]
    light, heavy = first.lines
    assert [torch.as_tensor(line.get_xydata()).tolist() for line in (light, heavy)] == [[[16, 4]], [[12, 6]]]
    assert light.get_markersize() < heavy.get_markersize()


# --- the command that repeats a run -----------------------------------------------------------------------------------


@pytest.mark.parametrize("row", ROWS)
def test_the_row_is_found_again(row: str) -> None:
    assert row_of(config_to_dict(model_config(row))) == row


def changed(name: str, row: str | None, **train: Any) -> Recipe:
    base = recipe(name, row)
    return replace(base, data=replace(base.data, folder="no where & $HOME"), train=replace(base.train, **train))


RECIPES = [changed(name, row, lr=3e-4) for name in recipe_names() for row in (None, "detr", "faster-rcnn")]
_MODEL: Any = recipe("shapes").model
_COCO_MODEL: Any = recipe("coco", "detr").model
RECIPES += [
    replace(changed("coco", "detr"), model=replace(_COCO_MODEL, backbone=replace(_COCO_MODEL.backbone, frozen=False))),
    replace(
        changed("coco", "deformable-detr-single-scale-dc5", group_orientations=True, optimizer="muon"),
        augment=replace(recipe("coco").augment, short_sides=(), crop=False),
    ),
    # A new batch or length, and a learning rate or drop that does not follow it.
    changed("shapes", None, batch=4),
    changed("coco", None, epochs=25, batch=16),
    replace(
        changed("shapes", None),
        model=replace(
            _MODEL, hints=0, backbone=replace(_MODEL.backbone, name="resnet18"), loss=replace(_MODEL.loss, l1=4.0)
        ),
    ),
]


@pytest.mark.parametrize("chosen", RECIPES, ids=lambda chosen: chosen.name)
def test_the_command_gives_the_same_recipe(chosen: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given: list[Recipe] = []

    def train(recipe: Recipe, *_: Any, **__: Any) -> dict[str, float]:
        given.append(recipe)
        return {}

    monkeypatch.setattr("ddetr_lite.engine.train.train", train)
    values = json.loads(json.dumps(recipe_to_dict(chosen)))
    words = shlex.split(command(values, row_of(values["model"]), str(tmp_path / "again")))
    assert words[0] == "ddetr-lite"
    assert main(words[1:]) == 0
    assert given == [chosen]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": "mine"}, "made in Python"),
        ({"data": {"colour": 1}}, "another version"),
        ({"model": None}, "not whole"),
    ],
)
def test_recipes_that_no_command_gives(change: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        command({**recipe_to_dict(recipe("shapes")), **change}, "detr")


def test_a_field_that_was_a_switch_in_an_older_version() -> None:
    values = recipe_to_dict(recipe("shapes"))
    values["train"] = {**values["train"], "precision": True}
    with pytest.raises(ValueError, match="precision=True is of another version"):
        command(values, "detr")


# --- comparing --------------------------------------------------------------------------------------------------------


def test_only_fields_that_differ_are_listed(run: Path, tmp_path: Path) -> None:
    lines = read_log(run / "log.jsonl")
    other = json.loads(json.dumps(lines))
    other[0]["recipe"]["train"]["lr"] = 0.25
    other[0]["recipe"]["augment"]["short_sides"] = [32, 48]
    del other[0]["recipe"]["train"]["seed"]  # as if an older version did not know it: it is at its default
    runs = read_runs([run, write_log(tmp_path / "x" / "run", other), write_log(tmp_path / "y" / "run", lines[:3])])
    assert list(runs) == [f"{run.parent.name}/{NAME}", "x/run", "y/run"]  # as much of the path as tells them apart
    rows = {row[0]: row[1:] for row in comparison(runs)}
    assert rows["AP, best"] == ["0.500", "0.500", "–"]
    assert rows["AP, last"] == ["0.400", "0.400", "–"]
    assert rows["  small"] == ["–", "–", "–"]
    assert rows["best at epoch"] == ["1", "1", "–"]
    assert rows["steps"] == ["10", "10", "2"]
    assert rows["epochs"] == ["2", "2", "0.4"]
    assert rows["parameters"] == ["1.25M"] * 3
    assert rows["pictures/s"] == ["55", "55", "15"]
    assert rows["minutes"] == ["5", "5", "1"]
    assert rows["model row"] == ["deformable-detr"] * 3
    usual = f"{lines[0]['recipe']['train']['lr']:g}"
    assert {name: row for name, row in rows.items() if "." in name} == {
        "train.lr": [usual, "0.25", usual],
        "augment.short_sides": ["()", "32 48", "()"],
    }
    drawn = comparison_figure(runs)
    assert [len(ax.lines) for ax in drawn.axes] == [3, 3, 3]
    epochs, minutes, _ = (ax.lines[0].get_xdata() for ax in drawn.axes)
    assert [list(map(float, x)) for x in (epochs, minutes)] == [[1, 2], [2.5, 5]]  # type: ignore[arg-type]


def test_a_recipe_of_an_unknown_version_is_compared_as_it_is(run: Path, tmp_path: Path) -> None:
    lines = read_log(run / "log.jsonl")
    lines[0]["recipe"]["train"]["colour"] = "red"
    rows = comparison(read_runs([run, write_log(tmp_path / "other", lines)]))
    assert [row for row in rows if "." in row[0]] == [["train.colour", "–", "red"]]


def test_differing_keeps_the_parts_together() -> None:
    rows = differing([{"a": {"x": 1}, "b": {"z": 0.5}}, {"a": {"x": 2, "y": True}, "b": {"z": 0.25}}])
    assert rows == [["a.x", "1", "2"], ["a.y", "–", "True"], ["b.z", "0.5", "0.25"]]
    assert text_table([["", "one"], ["long name", "1"]]) == "           one\n---------  ---\nlong name  1"


def test_the_commands_write_what_they_say(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(run / "log.jsonl"), "--worst", "0", "--threshold", "0.75"]) == 0
    text = (run / "report.html").read_text(encoding="utf-8")
    assert "score at least 0.75" in check_page(text).text
    out = tmp_path / "new" / "both.png"
    assert main(["compare", str(run), "--out", str(out)]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "report.html is written" in printed
    assert "AP, best" in printed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["report"], "report"),
        (["report", "EMPTY"], "holds no log.jsonl"),
        (["report", "no/where"], "no/where does not exist"),
        (["report", "RUN", "--threshold", "2"], "--threshold 2.0"),
        (["report", "RUN", "--worst", "-1"], "--worst -1"),
        (["compare"], "at least one run"),
        (["compare", "RUN", "EMPTY"], "holds no log.jsonl"),
        (["compare", "RUN", "BLANK"], "has no line of a run"),
        (["compare", "RUN", "BINARY"], "is not the log of a run"),
        (["compare", "RUN", "RUN"], "named twice"),
        (["compare", "RUN", "--out", "x.pdf"], "must end in .png"),
    ],
)
def test_mistakes_get_one_line(
    words: list[str], said: str, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "blank.jsonl").write_text('\n{"kind": "sta', encoding="utf-8")
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "empty").mkdir()
    places = {
        "RUN": run,
        "EMPTY": tmp_path / "empty",
        "BLANK": tmp_path / "blank.jsonl",
        "BINARY": tmp_path / "binary.jsonl",
    }
    assert main([str(places.get(word, word)) for word in words]) == 2
    message = capsys.readouterr().err.strip().splitlines()
    assert len(message) == 1
    assert said in message[0]
