"""`ddetr-lite evaluate` and `predict`: a trained model at work."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import Positional

from ddetr_lite.cli.data import make_shapes
from ddetr_lite.cli.parsing import Mistake, at_least, parse, table
from ddetr_lite.writing import write_json

if TYPE_CHECKING:
    from ddetr_lite.engine.predict import Found

DRAWN = ".boxes.png"  # how the names of pictures with boxes end


@dataclass(frozen=True)
class EvaluateOptions:
    """COCO's average precision of a checkpoint on a data set."""

    checkpoint: Positional[Path]
    """A checkpoint, or the folder of a run, whose best.pt is taken."""
    folder: Path | None = None
    """A folder in COCO's format; by default the one the model was trained on."""
    split: str | None = None
    """By default the one that the model was validated on, else "val"."""
    size_bands: tuple[float, float] | None = None
    """Where medium begins and ends: in pixels, or, below 1, as shares of the picture; by default as in training."""
    nms: float | None = None
    """Judge what non-maximum suppression leaves: of two detections of a class with a larger IoU the surer. By default all."""
    batch: int = 16
    """Pictures at once: a matter of speed and memory alone."""
    workers: int = 2
    device: str = "auto"
    out: Path | None = None
    """Write the metrics to this JSON file as well."""


def evaluate(words: list[str]) -> None:
    """Measure a checkpoint: AP, by size and by class."""
    options = parse(EvaluateOptions, words, "ddetr-lite evaluate")
    from ddetr_lite.engine.checkpoint import load_model
    from ddetr_lite.engine.distributed import pick_device
    from ddetr_lite.engine.evaluate import area_ranges, validation_set
    from ddetr_lite.engine.evaluate import evaluate as measure

    at_least(options, batch=1, workers=0)
    _check_nms(options.nms)
    loaded = load_model(options.checkpoint)
    trained_on = loaded.about.get("recipe", {}).get("data", {})
    folder = options.folder or trained_on.get("folder")
    if folder is None:
        raise Mistake(f"{options.checkpoint} does not say what it was trained on: name a data folder with --folder")
    if options.folder is None:
        make_shapes(loaded.about.get("recipe", {}).get("name"), str(folder))
    split = options.split or trained_on.get("val_split", "val")
    data = validation_set(loaded, folder, split)
    bands = options.size_bands or tuple(trained_on.get("size_bands", (32, 96)))
    area_ranges(data, bands)  # bands that do not fit are an error before all pictures are looked at
    model = loaded.model.to(pick_device(options.device))
    metrics = measure(model, data, bands, options.batch, options.workers, progress=True, nms=options.nms)
    print(f"{options.checkpoint} on {len(data)} pictures of {data.folder.annotations}")
    print(table(metrics))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        write_json(options.out, metrics, indent=2)


@dataclass(frozen=True)
class PredictOptions:
    """Objects in pictures: writes each picture with boxes, and detections.json.

    A photo that its file says to turn is turned first, and boxes are in the picture as it is shown.
    """

    checkpoint: Positional[Path]
    """A checkpoint, or the folder of a run, whose best.pt is taken."""
    pictures: Positional[tuple[Path, ...]]
    """Picture files, or folders of them."""
    out: Path | None = None
    """By default predictions/ in the run's folder, and runs/predictions/NAME for another checkpoint."""
    threshold: float | None = None
    """Leave out what scores less. By default the score at which F1 was best on the run's validation pictures, else 0.5."""
    nms: float | None = None
    """Leave out what overlaps a surer detection of its class by a larger IoU: 0.6, say, where objects are found twice."""
    device: str = "auto"


def predict(words: list[str]) -> None:
    """Find the objects in pictures of your own."""
    options = parse(PredictOptions, words, "ddetr-lite predict")
    from ddetr_lite.datasets.pictures import read_picture
    from ddetr_lite.engine.checkpoint import load_model
    from ddetr_lite.engine.distributed import pick_device
    from ddetr_lite.engine.predict import predict as find
    from ddetr_lite.engine.predict import threshold_for
    from ddetr_lite.plots.detection import drawn_over
    from ddetr_lite.plots.style import png

    if not options.pictures:
        raise Mistake("name at least one picture: ddetr-lite predict CHECKPOINT PICTURE...")
    if options.threshold is not None and not 0 <= options.threshold <= 1:
        raise Mistake(f"--threshold {options.threshold} must lie in 0..1")
    _check_nms(options.nms)
    loaded = load_model(options.checkpoint)
    pictures = [path for given in options.pictures for path in _pictures_in(given)]
    for path in pictures:
        if not path.expanduser().is_file():  # a mistyped path is found before anything is written
            raise Mistake(f"picture {path} does not exist")
    loaded.model.to(pick_device(options.device))
    out = options.out or _predictions_of(options.checkpoint)
    if out.is_file():
        raise Mistake(f"--out {out} is a file: name a folder")
    out.mkdir(parents=True, exist_ok=True)
    threshold = threshold_for(loaded) if options.threshold is None else options.threshold
    known = options.threshold is None and loaded.about.get("threshold") is not None
    best = ", best on the validation pictures; --threshold gives another" if known else ""
    print(f"Shown is what scores at least {threshold:.2f}{best}.")
    results: list[dict[str, Any]] = []
    broken: list[ValueError] = []
    try:
        for path, drawn in zip(pictures, _drawn_names(pictures), strict=True):
            try:
                pixels = read_picture(path, upright=True)
            except ValueError as error:
                print(f"{path}: cannot be read, left out")
                broken.append(error)
                continue
            all_found = find(loaded, pixels, 0.0, options.nms)
            found = [f for f in all_found if f.score >= threshold]
            named = [f.box for f in found], [f.label for f in found], [f.score for f in found]
            (out / drawn).write_bytes(png(drawn_over(pixels, *named, classes=loaded.classes)))
            height, width = pixels.shape[1:]
            objects = [_as_record(f) for f in found]
            results.append({"file": str(path), "height": height, "width": width, "objects": objects})
            _print_found(path, out / drawn, found, best=all_found[0].score if all_found else None)
    finally:  # what was found before Ctrl-C is kept, and an earlier file where nothing could be read
        if results:
            write_json(out / "detections.json", results, indent=2)
    if broken:
        more = f", ... and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise Mistake(
            f"{len(broken)} of {len(pictures)} pictures were left out: " + "; ".join(map(str, broken[:5])) + more
        )


def _as_record(found: "Found") -> dict[str, Any]:
    """An object in detections.json."""
    rounded = {"box": [round(x, 2) for x in found.box], "score": round(found.score, 4)}
    return {**dataclasses.asdict(found), **rounded}


def _print_found(path: Path, drawn: Path, found: "Sequence[Found]", best: float | None) -> None:
    """What was found in a picture, and where it is drawn. best: the highest score, of what is not shown too."""
    print(f"{path}: {len(found)} object{'' if len(found) == 1 else 's'} → {drawn}")
    if best is not None and not found:
        print(f"  the best score is {best:.2f}: a lower --threshold shows more")
    for f in found:
        print(f"  {f.label:<16} {f.score:.2f}  " + " ".join(f"{x:7.1f}" for x in f.box))


def _predictions_of(checkpoint: Path) -> Path:
    """Where a model's predictions go: each model's to a folder of its own."""
    run = checkpoint if checkpoint.is_dir() else checkpoint.parent
    return run / "predictions" if (run / "log.jsonl").exists() else Path("runs/predictions") / checkpoint.stem


def _check_nms(iou: float | None) -> None:
    if iou is not None and not 0 <= iou <= 1:
        raise Mistake(f"--nms {iou} must lie in 0..1: it is an IoU")


def _pictures_in(path: Path) -> list[Path]:
    """The picture files of a folder; another path as it is."""
    if not path.is_dir():
        return [path]
    from ddetr_lite.datasets.pictures import SUFFIXES, is_picture

    inside = sorted(path.iterdir())
    found = [file for file in inside if is_picture(file) and not file.name.endswith(DRAWN)]
    below = [f"{folder}" for folder in inside if folder.is_dir()]
    hint = f"those of its folders have to be named themselves: {', '.join(below[:3])}{', ...' * (len(below) > 3)}"
    if not found:
        raise Mistake(
            f"folder {path} holds no pictures ({', '.join(sorted(SUFFIXES))})" + (f"; {hint}" if below else "")
        )
    if below:
        print(f"{path}: only its own pictures are looked at; {hint}")
    return found


def _drawn_names(pictures: Sequence[Path]) -> list[str]:
    """A file name for each picture with its boxes; of the same name in several folders the second gets "-2", and so on."""
    names: dict[str, None] = {}  # in order, and quick to look up where a folder has thousands
    for path in pictures:
        number, name = 1, f"{path.stem}{DRAWN}"
        while name in names:
            number += 1
            name = f"{path.stem}-{number}{DRAWN}"
        names[name] = None
    return list(names)
