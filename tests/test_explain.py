"""Each mistake, really made on tiny data, must be named by `explain`; a healthy run must be left in peace."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ddetr_lite.cli import main
from ddetr_lite.datasets.coco import CocoDetection, CocoFolder
from ddetr_lite.datasets.shapes import KINDS, ShapesConfig, write_shapes
from ddetr_lite.engine.checkpoint import load_model, read, save_model, write_atomically
from ddetr_lite.engine.evaluate import results_of
from ddetr_lite.engine.explain import ORDER, Explanation, explain
from ddetr_lite.engine.explain_boxes import OF_PREDICTIONS, Reading
from ddetr_lite.engine.explain_evidence import Observation, gather
from ddetr_lite.engine.explain_healthy import RUNS, check_steps
from ddetr_lite.engine.log import read_log
from ddetr_lite.engine.recipe_checks import check
from ddetr_lite.engine.recipes import Recipe, recipe, recipe_from_dict, recipe_to_dict
from ddetr_lite.engine.train import train
from ddetr_lite.models.presets import ROWS, build
from ddetr_lite.set_prediction.postprocess import Detections

ROOT = Path(__file__).resolve().parents[1]
Content = dict[str, Any]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """These models are too small for more, and threads that wait for a busy machine would make the tests slow."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures like those that the committed models were trained on."""
    folder = tmp_path_factory.mktemp("data") / "shapes"
    return write_shapes(folder, ShapesConfig(train_images=16, val_images=16), progress=False)


def changed(data: Path, folder: Path, split: str, change: Callable[[Content], None]) -> Path:
    """A copy of the data with other annotations of a split."""
    shutil.copytree(data, folder)
    path = folder / "annotations" / f"instances_{split}.json"
    content = json.loads(path.read_text(encoding="utf-8"))
    change(content)
    path.write_text(json.dumps(content), encoding="utf-8")
    return folder


def run_of(
    folder: Path,
    data: Path,
    source: str = "shapes",
    change: Callable[[Recipe], Recipe] = lambda r: r,
    steps: int = 10**6,
) -> Path:
    """A committed run's log and recipe, with other data and options, as if it had been stopped after so many steps."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = read_log(ROOT / "data" / "results" / source / "log.jsonl")
    chosen = recipe_from_dict(lines[0]["recipe"])
    chosen = change(replace(chosen, data=replace(chosen.data, folder=str(data))))
    lines[0]["recipe"] = recipe_to_dict(chosen)
    kept = [line for line in lines if line["step"] <= steps]
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    (folder / "recipe.json").write_text(json.dumps(recipe_to_dict(chosen)), encoding="utf-8")
    return folder


def with_model(run: Path, name: str = "shapes", change: Callable[[Any], None] = lambda model: None) -> Path:
    """Give a run the weights of a committed model, changed, as best.pt and last.pt."""
    loaded = load_model(ROOT / "data" / "checkpoints" / f"{name}.pt")
    with torch.no_grad():
        change(loaded.model)
    for file in ("best.pt", "last.pt"):
        save_model(run / file, loaded.model, loaded.classes, loaded.about)
    return run


def with_options(**options: Any) -> Callable[[Recipe], Recipe]:
    return lambda chosen: replace(chosen, train=replace(chosen.train, **options))


def with_architecture(**options: Any) -> Callable[[Recipe], Recipe]:
    return lambda chosen: replace(chosen, model=replace(chosen.model, **options))


def look(run: Path, steps: int = 0) -> Explanation:
    return explain(run, pictures=12, steps=steps, device="cpu")


def of(explanation: Explanation, name: str) -> Observation:
    """The worst that was said under a name."""
    own = [o for o in explanation.observations if o.name == name]
    return min(own, key=lambda o: ("cause", "suspicious", "OK", "skipped").index(o.verdict))


def causes(explanation: Explanation) -> list[str]:
    return [o.name for o in explanation.likely() if o.verdict == "cause"]


def content_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.mark.parametrize(("source", "name"), [("shapes", "shapes"), ("shapes-detr", "detr")])
def test_a_healthy_run_is_left_in_peace(shapes: Path, tmp_path: Path, source: str, name: str) -> None:
    run = with_model(run_of(tmp_path / "run", shapes, source), name)
    before = content_of(tmp_path)
    explanation = look(run, steps=40)
    assert content_of(tmp_path) == before
    assert causes(explanation) == []
    assert [o.name for o in explanation.observations if o.verdict == "suspicious"] == []
    assert {o.name for o in explanation.observations} <= set(ORDER)
    assert explanation.conclusion() == [
        "Most likely: nothing is wrong; a low AP needs more steps, more pictures or a larger model."
    ]
    measured = {o.name for o in explanation.observations if o.verdict == "OK"}
    assert measured >= {"one batch", "query collapse", "matching", "boxes", "classes", "scores", "kinds of error"}


def test_a_picture_that_cannot_be_read_comes_before_what_follows_from_it() -> None:
    found = [Observation(name, "cause", "") for name in ("gradient", "pictures", "data and model", "data")]
    assert [o.name for o in Explanation(found).likely()] == ["data", "pictures", "data and model", "gradient"]
    with pytest.raises(ValueError, match="not in tuple"):  # a new check needs a place in ORDER
        Explanation([*found, Observation("moon", "cause", "")]).likely()


def test_learning_one_batch_does_not_change_what_is_looked_at_later(shapes: Path, tmp_path: Path) -> None:
    run = with_model(run_of(tmp_path / "run", shapes))
    (run / "best.pt").unlink()
    later = ("training and validation", "query collapse", "boxes", "classes", "scores")
    before, after = look(run), look(run, steps=10)
    assert [of(before, name) for name in later] == [of(after, name) for name in later]


# Faults of the data


def corners(content: Content) -> None:
    for a in content["annotations"]:
        x, y, w, h = a["bbox"]
        a["bbox"] = [x, y, x + w, y + h]


def normalised(content: Content) -> None:
    for a in content["annotations"]:
        a["bbox"] = [value / 96 for value in a["bbox"]]


@pytest.mark.parametrize(
    ("change", "words", "remedy"), [(corners, "[x0, y0, x1, y1]", "subtract"), (normalised, "0..1", "multiply")]
)
def test_boxes_in_another_form(
    shapes: Path, tmp_path: Path, change: Callable[[Content], None], words: str, remedy: str
) -> None:
    data = changed(shapes, tmp_path / "data", "train", change)
    explanation = look(run_of(tmp_path / "run", data))
    first = explanation.likely()[0]
    assert (first.name, first.verdict) == ("data", "cause")
    assert words in first.text
    assert "instances_train.json" in first.text
    assert remedy in first.remedy


def test_corners_in_validation_alone_are_found_by_the_model_too(shapes: Path, tmp_path: Path) -> None:
    data = changed(shapes, tmp_path / "data", "val", corners)
    explanation = look(with_model(run_of(tmp_path / "run", data)))
    assert causes(explanation)[:2] == ["data", "boxes"]
    assert "the truth's boxes are (x0, y0, x1, y1) read as (x, y, w, h)" in of(explanation, "boxes").text


def renamed(content: Content) -> None:
    """Ids that begin one higher in validation: each name stands for its neighbour."""
    names = [c["name"] for c in content["categories"]]
    for c, name in zip(content["categories"], [*names[1:], names[0]], strict=True):
        c["name"] = name


def test_shifted_class_ids(shapes: Path, tmp_path: Path) -> None:
    data = changed(shapes, tmp_path / "data", "val", renamed)
    explanation = look(with_model(run_of(tmp_path / "run", data)))
    assert explanation.likely()[0].name == "classes"
    text = of(explanation, "classes").text
    assert "with labels moved by +1" in text
    assert any(f"{a!r} is called {b!r}" in text for a, b in zip(KINDS[1:], KINDS, strict=False))
    assert "class" in of(explanation, "kinds of error").text


def test_permuted_classes_without_a_shift(shapes: Path, tmp_path: Path) -> None:
    def swap(content: Content) -> None:
        a, b, c, d, e, f, g, h = (k["name"] for k in content["categories"])
        for category, name in zip(content["categories"], (h, g, f, e, d, c, b, a), strict=True):
            category["name"] = name

    data = changed(shapes, tmp_path / "data", "val", swap)
    explanation = look(with_model(run_of(tmp_path / "run", data)))
    assert explanation.likely()[0].name == "classes"
    assert "with another order of classes" in of(explanation, "classes").text


def test_validation_of_another_kind(shapes: Path, tmp_path: Path) -> None:
    data = shutil.copytree(shapes, tmp_path / "data")
    for path in (data / "val").glob("*.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)).save(path)
    explanation = look(with_model(run_of(tmp_path / "run", data)))
    assert "training and validation" in causes(explanation)


def test_classes_that_the_model_does_not_know(shapes: Path, tmp_path: Path) -> None:
    def rename(content: Content) -> None:
        content["categories"][2]["name"] = "cube"

    data = changed(shapes, tmp_path / "data", "val", rename)
    explanation = look(with_model(run_of(tmp_path / "run", data)))
    assert causes(explanation)[:2] == ["data", "data and model"]
    assert "'cube'" in of(explanation, "data and model").text


def test_too_few_queries(shapes: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", shapes, change=with_architecture(queries=2))
    few = recipe_from_dict(json.loads((run / "recipe.json").read_text(encoding="utf-8")))
    with pytest.raises(ValueError, match=r"objects, the model only 2 queries: train with --queries"):
        train(few, tmp_path / "new", progress=False)
    explanation = look(run, steps=1)
    assert causes(explanation)[0] == "number of queries"
    assert "2 queries, at most 5 objects" in of(explanation, "number of queries").text
    assert "training stops" in of(explanation, "one batch").text


# Faults of the recipe


def tiny(data: Path, row: str = "detr", **options: Any) -> Recipe:
    base = recipe("shapes", row)
    small: Any = {"dim": 32, "heads": 2, "hidden": 32, "encoder_layers": 1, "decoder_layers": 2, "queries": 6}
    model = replace(base.model, **{k: v for k, v in small.items() if hasattr(base.model, k)})
    settings: dict[str, Any] = {"epochs": 4, "batch": 4, "log_every": 1, "forecast": False, "evaluate_every": 0}
    return replace(
        base, model=model, data=replace(base.data, folder=str(data)), train=replace(base.train, **(settings | options))
    )


def test_far_too_high_a_learning_rate(shapes: Path, tmp_path: Path) -> None:
    chosen = tiny(shapes, optimizer="adamw", lr=0.9, clip_norm=0.0, warmup_steps=0, epochs=8)
    train(chosen, tmp_path / "run", progress=False)
    explanation = look(tmp_path / "run")
    assert causes(explanation)[0] == "learning rate"
    assert "far too high" in of(explanation, "learning rate").text


def test_weights_that_run_away_until_steps_are_skipped(shapes: Path, tmp_path: Path) -> None:
    chosen = tiny(shapes, optimizer="adamw", lr=1e-3, weight_decay=1e6, warmup_steps=0, max_bad_steps=4, epochs=12)
    with pytest.raises(FloatingPointError):
        train(chosen, tmp_path / "run", progress=False)
    assert not (tmp_path / "run" / "best.pt").exists()
    explanation = look(tmp_path / "run")
    assert causes(explanation)[:2] == ["weight decay", "skipped steps"]
    assert "had no finite gradient" in of(explanation, "skipped steps").text
    assert "lower --lr than 0.001" in of(explanation, "skipped steps").remedy


def test_far_too_low_a_learning_rate(shapes: Path, tmp_path: Path) -> None:
    chosen = tiny(shapes, optimizer="adamw", lr=1e-7, warmup_steps=0, schedule="constant")
    train(chosen, tmp_path / "run", progress=False)
    explanation = look(tmp_path / "run", steps=40)
    assert causes(explanation)[0] == "learning rate"
    assert "far too low" in of(explanation, "learning rate").text
    assert of(explanation, "loss").verdict == "suspicious"
    assert "the learning rate is too low" in of(explanation, "one batch").remedy


def test_a_rate_that_one_batch_cannot_bear(shapes: Path, tmp_path: Path) -> None:
    run = with_model(run_of(tmp_path / "run", shapes, "shapes-detr", with_options(lr=0.3)), "detr")
    explanation = look(run, steps=25)
    assert of(explanation, "one batch").verdict == "cause"
    assert "too high" in of(explanation, "one batch").remedy


def test_a_warm_up_longer_than_the_run(shapes: Path, tmp_path: Path) -> None:
    explanation = look(run_of(tmp_path / "run", shapes, change=with_options(warmup_steps=9000)))
    assert causes(explanation) == ["learning rate"]
    assert "never reaches" in of(explanation, "learning rate").text
    assert of(explanation, "learning rate").remedy == "--warmup-steps 150"


def test_a_warm_up_longer_than_the_run_does_not_hide_that_the_rates_are_far_too_low(
    shapes: Path, tmp_path: Path
) -> None:
    """Muon's rate is that of all matrices: AdamW's alone would mend little."""
    change = with_options(warmup_steps=9000, lr=1e-7, muon_lr=1e-6)
    found = of(look(run_of(tmp_path / "run", shapes, change=change)), "learning rate")
    assert found.remedy == "--warmup-steps 150 --lr 0.001 --muon-lr 0.01"
    low = of(look(run_of(tmp_path / "low", shapes, change=with_options(muon_lr=1e-6))), "learning rate")
    assert "far too low" in low.text
    assert low.remedy == "--lr 0.001 --muon-lr 0.01"


@pytest.mark.parametrize("frozen", [True, False])
def test_a_frozen_backbone_without_weights(shapes: Path, tmp_path: Path, frozen: bool) -> None:
    def change(chosen: Recipe) -> Recipe:
        backbone = replace(chosen.model.backbone, frozen=frozen)
        return with_options(backbone_lr=0.1 if frozen else 0.0)(with_architecture(backbone=backbone)(chosen))

    run = run_of(tmp_path / "run", shapes, change=change)
    if frozen:
        with pytest.raises(ValueError, match=r"backbone\.weights='none' with backbone\.frozen=True"):
            check(recipe_from_dict(json.loads((run / "recipe.json").read_text(encoding="utf-8"))))
    assert causes(look(run)) == ["backbone"]


def test_no_object_that_outweighs_the_objects(shapes: Path, tmp_path: Path) -> None:
    def change(chosen: Recipe) -> Recipe:
        heavy = replace(chosen.model.loss, no_object=1.0)  # type: ignore[union-attr]
        return with_architecture(queries=100, loss=heavy)(chosen)

    assert causes(look(run_of(tmp_path / "run", shapes, "shapes-detr", change))) == ["weight of no object"]


def test_evaluation_at_another_size(shapes: Path, tmp_path: Path) -> None:
    def change(chosen: Recipe) -> Recipe:
        return replace(chosen, augment=replace(chosen.augment, short_sides=(128, 160), eval_short_side=800))

    explanation = look(run_of(tmp_path / "run", shapes, change=change))
    assert causes(explanation) == ["picture size"]
    assert of(explanation, "picture size").remedy == "--eval-short-side 160"


def test_too_few_steps(shapes: Path, tmp_path: Path) -> None:
    explanation = look(run_of(tmp_path / "run", shapes, steps=250), steps=0)
    assert causes(explanation) == ["number of steps"]
    assert "6.0 × as long" in of(explanation, "number of steps").remedy
    assert of(explanation, "healthy run").verdict == "OK"


# Faults of the model


def test_queries_that_are_all_the_same(shapes: Path, tmp_path: Path) -> None:
    def collapse(model: Any) -> None:
        model.query_embed.weight.copy_(model.query_embed.weight.mean(0, keepdim=True))

    run = with_model(run_of(tmp_path / "run", shapes, "shapes-detr"), "detr", collapse)
    explanation = look(run)
    assert "query collapse" in causes(explanation)
    assert "all queries give the same box" in of(explanation, "query collapse").text


def test_a_model_that_does_not_look(shapes: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", shapes, "shapes-deformable-eight-epochs")
    # As it begins: a query's box is where its reference point is, whatever the picture.
    save_model(run / "last.pt", build(recipe("shapes", "deformable-detr").model, len(KINDS)), list(KINDS), {})
    explanation = look(run)
    assert "every picture gets the same boxes" in of(explanation, "query collapse").text
    assert of(explanation, "query collapse").verdict == "cause"


def test_scores_that_never_moved(shapes: Path, tmp_path: Path) -> None:
    def reset(model: Any) -> None:
        for head in model.class_embed[:-1]:  # the last one is the encoder's
            nn.init.normal_(head.weight, std=1e-3)
            nn.init.constant_(head.bias, -4.6)

    explanation = look(with_model(run_of(tmp_path / "run", shapes), change=reset))
    assert "scores" in causes(explanation)
    assert "the class head has not moved" in of(explanation, "scores").text
    assert of(explanation, "boxes").verdict == "OK"


def test_weights_that_are_not_numbers(shapes: Path, tmp_path: Path) -> None:
    def break_it(model: Any) -> None:
        model.transformer.level_embed[0, 0] = float("nan")

    run = with_model(run_of(tmp_path / "run", shapes), change=break_it)
    for file in ("best.pt", "last.pt"):
        explanation = look(run)
        assert causes(explanation)[0] == "weights"
        text = of(explanation, "weights").text
        assert text.startswith(f"{file}: NaN or infinity in 1 of ")
        assert text.endswith("transformer.level_embed")
        shutil.copy(ROOT / "data" / "checkpoints" / "shapes.pt", run / file)
    assert causes(look(run)) == []


def test_a_model_that_cannot_learn(shapes: Path, tmp_path: Path) -> None:
    def saturate(model: Any) -> None:
        model.bbox_embed.layers[-1].bias.fill_(60.0)  # where a sigmoid has no slope
        model.class_embed.weight.zero_()

    run = with_model(run_of(tmp_path / "run", shapes, "shapes-detr"), "detr", saturate)
    observation = of(look(run, steps=25), "one batch")
    assert observation.verdict == "cause"
    assert "it cannot learn by heart" in observation.text


def test_a_few_steps_say_nothing(shapes: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", shapes, change=with_options(lr=1e-7))
    observation = of(look(run, steps=5), "one batch")
    assert observation.verdict == "skipped"
    assert observation.text.endswith("in 5 steps: too few to tell; --steps 60 are usual")


def test_who_has_started_from_a_detector_is_not_told_to(shapes: Path, tmp_path: Path) -> None:
    for source, told in (("", True), ("x.pt", False)):
        run = run_of(tmp_path / f"run{told}", shapes, "shapes-detr", with_options(start_from=source), steps=100)
        evidence = gather(run, None, 4, 0, "cpu")
        assert evidence.recipe is not None
        evidence.recipe = replace(evidence.recipe, name="another")  # of which no healthy run is known
        observation = check_steps(evidence)
        assert observation.verdict in ("cause", "suspicious")
        assert ("--start-from" in observation.remedy) == told


def test_a_loss_that_asks_for_nothing(shapes: Path, tmp_path: Path) -> None:
    def change(chosen: Recipe) -> Recipe:
        nothing = replace(chosen.model.loss, classification=0.0, l1=0.0, giou=0.0)  # type: ignore[union-attr]
        return with_architecture(loss=nothing)(chosen)

    explanation = look(run_of(tmp_path / "run", shapes, "shapes-detr", change), steps=3)
    assert "nothing is asked for" in of(explanation, "one batch").text
    assert causes(explanation) == ["one batch"]


# Faults seen in detections alone


def detections_run(
    folder: Path, data: Path, change: Callable[[Detections, tuple[int, int]], Detections], steps: int = 10**6
) -> Path:
    """A run whose last evaluation found each object, changed."""
    run = run_of(folder, data, steps=steps)
    dataset = CocoDetection(CocoFolder.find(data, "val"))
    found = {}
    for i in range(len(dataset)):
        _, target = dataset[i]
        n = len(target["labels"])
        perfect = {"boxes": target["boxes"].clone(), "labels": target["labels"], "scores": torch.linspace(0.9, 0.6, n)}
        found[int(target["image_id"])] = change(perfect, (96, 96))
    content = {"epoch": 1, "step": 1, "detections": results_of(found, dataset)}
    (run / "detections.json").write_text(json.dumps(content), encoding="utf-8")
    return run


def test_perfect_detections(shapes: Path, tmp_path: Path) -> None:
    explanation = look(detections_run(tmp_path / "run", shapes, lambda d, _: d))
    assert causes(explanation) == []
    assert "detections.json, 16 pictures" in of(explanation, "scores").text
    for name in ("boxes", "classes", "scores", "kinds of error"):
        assert of(explanation, name).verdict == "OK"


def wrong(boxes: torch.Tensor, number: int) -> torch.Tensor:
    """The mistake that reading number `number` of `OF_PREDICTIONS` puts right."""
    x0, y0, x1, y1 = boxes.unbind(1)
    cx, cy, w, h = (x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0
    made = [
        (x0, y0, x0 + x1, y0 + y1), (x0 - x1 / 2, y0 - y1 / 2, x0 + x1 / 2, y0 + y1 / 2), (cx, cy, w, h),
        (cx, cy, cx + w, cy + h), (y0, x0, y1, x1), tuple(boxes.T / 96), (96 - x1, y0, 96 - x0, y1),
    ]  # fmt: skip
    return torch.stack(made[number], dim=1)


@pytest.mark.parametrize(
    ("number", "reading"), list(enumerate(OF_PREDICTIONS[:7])), ids=lambda v: getattr(v, "name", None)
)
def test_predictions_in_another_form(shapes: Path, tmp_path: Path, number: int, reading: Reading) -> None:
    def change(d: Detections, _: tuple[int, int]) -> Detections:
        return {**d, "boxes": wrong(d["boxes"], number)}

    explanation = look(detections_run(tmp_path / "run", shapes, change))
    assert causes(explanation) == ["boxes"]
    assert reading.name in of(explanation, "boxes").text


def test_boxes_scaled_by_padding(shapes: Path, tmp_path: Path) -> None:
    explanation = look(detections_run(tmp_path / "run", shapes, lambda d, _: {**d, "boxes": d["boxes"] / 2}))
    assert causes(explanation) == ["boxes"]
    assert "0.5 × as large" in of(explanation, "boxes").text
    assert "padding" in of(explanation, "boxes").remedy


def test_boxes_that_are_merely_poor_are_no_other_form(shapes: Path, tmp_path: Path) -> None:
    def change(d: Detections, _: tuple[int, int]) -> Detections:
        return {**d, "boxes": d["boxes"] + torch.empty(len(d["boxes"]), 4).uniform_(-9, 9)}

    assert of(look(detections_run(tmp_path / "run", shapes, change)), "boxes").verdict != "cause"


def test_a_reading_that_fits_as_well_as_none_is_no_cause(shapes: Path, tmp_path: Path) -> None:
    explanation = look(detections_run(tmp_path / "run", shapes, lambda d, _: {**d, "boxes": d["boxes"] * 0.89}))
    assert of(explanation, "boxes").verdict != "cause"


def test_detections_of_other_pictures_and_classes(shapes: Path, tmp_path: Path) -> None:
    run = detections_run(tmp_path / "run", shapes, lambda d, _: d)
    content = json.loads((run / "detections.json").read_text(encoding="utf-8"))
    for field, name in (("category_id", "category id 1001"), ("image_id", "none in the first")):
        moved = [{**d, field: d[field] + 1000} for d in content["detections"]]
        (run / "detections.json").write_text(json.dumps({**content, "detections": moved}), encoding="utf-8")
        assert name.split(" 1001")[0] in of(look(run), "detections").text


# Logs


def test_one_broken_picture_is_told_from_a_high_rate(shapes: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", shapes)
    with (run / "log.jsonl").open("a", encoding="utf-8") as file:
        for step in range(100, 1500, 100):
            pictures = [7, *range(step, step + 15)]
            file.write(json.dumps({"kind": "skip", "step": step, "pictures": pictures, "reason": "NaN"}) + "\n")
    observation = of(look(run), "skipped steps")
    assert observation.verdict == "cause"
    assert "image id 7" in observation.remedy


@pytest.mark.parametrize(
    ("factor", "verdict", "words"), [(lambda t: 1 + 2 * t, "cause", "rises"), (lambda t: 1.0, "suspicious", "stays")]
)
def test_losses_that_do_not_fall(
    shapes: Path, tmp_path: Path, factor: Callable[[float], float], verdict: str, words: str
) -> None:
    run = run_of(tmp_path / "run", shapes)
    lines = read_log(run / "log.jsonl")
    for line in lines:
        if line["kind"] == "train":
            line.update(loss=25 * factor(line["step"] / 1500), gradient_norm=1e-5)
        if line["kind"] == "evaluate":
            line["AP"] = 0.0
    (run / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    explanation = look(run)
    assert of(explanation, "loss").verdict == verdict
    assert words in of(explanation, "loss").text
    assert of(explanation, "gradient").verdict == "cause"
    assert "far below" in of(explanation, "healthy run").text


def test_a_run_that_died_at_once(shapes: Path, tmp_path: Path) -> None:
    explanation = look(run_of(tmp_path / "run", shapes, steps=0), steps=2)
    assert of(explanation, "progress").verdict == "suspicious"
    assert "before its first checkpoint" in of(explanation, "weights").text
    assert "fresh weights" in of(explanation, "one batch").text


def test_data_that_are_elsewhere(shapes: Path, tmp_path: Path) -> None:
    run = with_model(run_of(tmp_path / "run", tmp_path / "gone"))
    explanation = explain(run, pictures=4, steps=0, device="cpu")
    assert "does not exist here" in of(explanation, "data folder").text
    assert of(explanation, "classes").verdict == "skipped"
    found = explain(run, shapes, pictures=4, steps=0, device="cpu")
    assert of(found, "boxes").verdict == "OK"


def test_faster_rcnn_has_no_queries(shapes: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", shapes, "shapes-faster-rcnn")
    chosen = recipe_from_dict(json.loads((run / "recipe.json").read_text(encoding="utf-8")))
    torch.manual_seed(0)
    save_model(run / "last.pt", build(chosen.model, len(KINDS)), list(KINDS), {})
    explanation = explain(run, pictures=4, steps=2, device="cpu")
    assert "has no queries" in of(explanation, "query collapse").text
    assert "number of queries" not in [o.name for o in explanation.observations]
    assert "the loss went" in of(explanation, "one batch").text


@pytest.mark.parametrize("row", ROWS)
def test_every_row_of_the_table(shapes: Path, tmp_path: Path, row: str) -> None:
    chosen = tiny(shapes, row)
    (tmp_path / "recipe.json").write_text(json.dumps(recipe_to_dict(chosen)), encoding="utf-8")
    start = {"kind": "start", "step": 0, "recipe": recipe_to_dict(chosen), "classes": list(KINDS), "steps_in_all": 900}
    (tmp_path / "log.jsonl").write_text(json.dumps(start) + "\n", encoding="utf-8")
    for name in ("best.pt", "last.pt"):
        save_model(tmp_path / name, build(chosen.model, len(KINDS)), list(KINDS), {})
    explanation = explain(tmp_path, pictures=3, steps=2, device="cpu")
    assert causes(explanation)[0] == "number of steps"
    assert "the loss went" in of(explanation, "one batch").text
    assert (of(explanation, "matching").verdict == "skipped") == (row == "faster-rcnn")
    assert ("from best.pt to last.pt" in of(explanation, "matching").text) == (row[-3:] != "cnn" and "two" not in row)


def test_files_of_another_version_or_damaged(shapes: Path, tmp_path: Path) -> None:
    run = with_model(run_of(tmp_path / "run", shapes))
    (run / "recipe.json").write_text('{"name": "shapes", "model": {"architecture": "yolo"}}', encoding="utf-8")
    (run / "last.pt").write_bytes(b"half a file")
    content = read(run / "best.pt")
    content["model"].pop("transformer.level_embed")
    write_atomically(content, run / "best.pt")
    explanation = look(run)
    assert "yolo" in of(explanation, "recipe").text
    assert {o.name for o in explanation.observations if o.verdict == "cause"} == {"checkpoint"}


def points_of(lines: list[dict[str, Any]], batch: int) -> dict[int, tuple[float | None, float]]:
    """The points of a log, {pictures: (AP, loss)}: at each evaluation, and at steps 50, 100 and 200 before the first."""
    train = [line for line in lines if line["kind"] == "train"]
    evaluations = {line["step"]: float(line["AP"]) for line in lines if line["kind"] == "evaluate"}
    early = {step for step in (50, 100, 200) if step < min(evaluations, default=1000)}
    result = {}
    for step in sorted(early | set(evaluations)):
        losses = [line["loss"] for line in train if 0.8 * step < line["step"] <= step]
        if losses:
            result[step * batch] = (evaluations.get(step), sum(losses) / len(losses))
    return result


def test_the_table_of_healthy_runs_is_that_of_the_logs() -> None:
    for healthy in RUNS:
        lines = read_log(ROOT / "data" / "results" / healthy.source / "log.jsonl")
        measured = points_of(lines, lines[0]["recipe"]["train"]["batch"])
        for pictures, ap, loss in healthy.points:
            expected = measured[pictures]
            assert ap == (None if expected[0] is None else pytest.approx(expected[0], abs=1e-3))
            assert loss == pytest.approx(expected[1], rel=1e-3)
        assert max(measured) == healthy.points[-1][0]
        assert healthy.recipe == lines[0]["recipe"]["name"]


@pytest.mark.parametrize(
    ("row", "source"),
    [
        ("deformable-detr", "shapes-deformable-eight-epochs"),
        ("deformable-detr-two-stage", "shapes"),
        ("deformable-detr-refine", "shapes"),
        ("detr-dc5", "shapes-detr"),
        ("faster-rcnn", "shapes-faster-rcnn"),
    ],
)
def test_which_healthy_run_is_compared(shapes: Path, tmp_path: Path, row: str, source: str) -> None:
    run = run_of(tmp_path / "run", shapes, change=lambda r: replace(r, model=recipe("shapes", row).model), steps=250)
    text = of(look(run), "healthy run").text
    assert f"data/results/{source} had" in text
    assert ("a rough comparison" in text) == (row in ("deformable-detr-refine", "detr-dc5"))


def test_before_a_healthy_run_was_judged_there_is_no_ap_to_compare_with(shapes: Path, tmp_path: Path) -> None:
    run = run_of(tmp_path / "run", shapes, steps=100)
    with (run / "log.jsonl").open("a", encoding="utf-8") as log:
        log.write(json.dumps({"kind": "evaluate", "step": 100, "epoch": 1, "AP": 0.0, "AP50": 0.0}) + "\n")
    text = of(look(run), "healthy run").text
    assert "its AP was first measured after 4000, so there is none to compare with yet" in text


def test_the_command(shapes: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = run_of(tmp_path / "run", shapes, steps=100)
    assert main(["explain", str(run), "--steps", "0", "--pictures", "4", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "Most likely:\n  1. number of steps: train about 15.0 × as long" in printed
    for words, said in (
        ([str(tmp_path / "nothing")], "name the folder of a training run"),
        ([str(run), "--pictures", "0"], "must be at least 1"),
        ([str(run), "--steps", "-1"], "must not be negative"),
    ):
        assert main(["explain", *words]) == 2
        assert said in capsys.readouterr().err
