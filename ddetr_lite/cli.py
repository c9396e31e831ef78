"""The command `ddetr-lite`: train, evaluate, predict, data, convert, bench.

Options are made from dataclasses by tyro. A mistake of the user's is answered with one line and exit code 2.
"""

import contextlib
import dataclasses
import io
import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro
from tyro.conf import Positional, arg

from ddetr_lite.datasets.shapes import ShapesConfig
from ddetr_lite.engine.recipes import Recipe, recipe_names

Options = TypeVar("Options")

FLAT = arg(name="")  # `--lr`, not `--train.lr`


class Mistake(Exception):
    """What the user should change, in one line."""


# ----------------------------------------------------------------------------------------------------------------- train


def train(words: list[str]) -> None:
    """Train a recipe, or go on with a run.

    ddetr-lite train shapes
    ddetr-lite train shapes --model detr --lr 1e-4 --out runs/detr
    ddetr-lite train shapes --out runs/detr --resume
    """
    from ddetr_lite.engine.recipes import recipe, recipe_from_dict
    from ddetr_lite.engine.train import train as run
    from ddetr_lite.plots.training import save_curves

    # These three decide what the other options' defaults are, so they are read first.
    name, words = _take_positional(words, "RECIPE", f"one of {', '.join(recipe_names())}", "train shapes")
    model, words = _take_option(words, "--model")
    out, words = _take_option(words, "--out")
    resume = "--resume" in words
    words = [word for word in words if word != "--resume"]
    folder = Path(out or f"runs/{name}")
    if resume:
        if model is not None:
            raise Mistake("--model cannot change when a run goes on: leave it out")
        path = folder / "recipe.json"
        if not path.exists():
            raise Mistake(f"nothing to resume: {path} does not exist; name the run's folder with --out")
        chosen = recipe_from_dict(json.loads(path.read_text(encoding="utf-8")))
        if chosen.name != name:
            raise Mistake(f"{folder} is a run of recipe {chosen.name!r}, not {name!r}")
    else:
        chosen = recipe(name, model)

    parts = [f for f in dataclasses.fields(Recipe) if f.name != "name"]
    kind = dataclasses.make_dataclass(
        "TrainOptions",
        [(f.name, Annotated[type(getattr(chosen, f.name)), FLAT], getattr(chosen, f.name)) for f in parts],
        frozen=True,
    )
    kind.__doc__ = (
        f"Train the recipe {name!r}. Besides these: --model ROW (a row of the paper's table), --out FOLDER (default runs/"
        f"{name}), --resume (go on with the run in that folder)."
    )
    options: Any = _parse(kind, words, f"ddetr-lite train {name}", extra=("--model", "--out", "--resume"))
    chosen = Recipe(name, **{f.name: getattr(options, f.name) for f in parts})
    if name == "shapes" and chosen.data.folder == recipe(name).data.folder:
        _make_shapes(chosen.data.folder)
    print(f"Training {name} in {folder}; stop with Ctrl-C, go on with --resume.", flush=True)
    metrics = run(chosen, folder, resume=resume, after_epoch=save_curves)
    if metrics:
        print(_table(metrics))
    print(f"{folder}: best.pt (model), last.pt (to go on), log.jsonl, curves.png")


def _make_shapes(folder: str) -> None:
    """The generated set costs a minute and no download: it is made where it is missing."""
    from ddetr_lite.datasets.shapes import write_shapes

    if not Path(folder).exists():
        print(f"Generating the data set in {folder} (once, about a minute).", flush=True)
        write_shapes(folder, ShapesConfig())


# -------------------------------------------------------------------------------------------------------------- evaluate


@dataclass(frozen=True)
class EvaluateOptions:
    """COCO's average precision of a checkpoint on a data set."""

    checkpoint: Positional[Path]
    folder: Path | None = None
    """A folder in COCO's format; by default the one the model was trained on."""
    split: str = "val"
    batch: int = 16
    workers: int = 2
    device: str = "auto"
    out: Path | None = None
    """Write the metrics to this JSON file as well."""


def evaluate(words: list[str]) -> None:
    """Measure a checkpoint: AP, by size and by class."""
    options = _parse(EvaluateOptions, words, "ddetr-lite evaluate")
    from ddetr_lite.datasets.coco import CocoDetection, CocoFolder
    from ddetr_lite.datasets.transforms import eval_transform
    from ddetr_lite.engine.checkpoint import load_model
    from ddetr_lite.engine.evaluate import evaluate as measure
    from ddetr_lite.engine.predict import augment_of
    from ddetr_lite.engine.train import pick_device

    loaded = load_model(options.checkpoint)
    trained_on = loaded.about.get("recipe", {}).get("data", {})
    folder = options.folder or trained_on.get("folder")
    if folder is None:
        raise Mistake(f"{options.checkpoint} does not say what it was trained on: name a data folder with --folder")
    if options.folder is None and loaded.about.get("recipe", {}).get("name") == "shapes":
        _make_shapes(str(folder))
    data = CocoDetection(CocoFolder.find(folder, options.split), eval_transform(augment_of(loaded)), loaded.classes)
    bands = tuple(trained_on.get("size_bands", (32, 96)))
    model = loaded.model.to(pick_device(options.device))
    metrics = measure(model, data, bands, options.batch, options.workers, progress=True)
    print(f"{options.checkpoint} on {len(data)} pictures of {data.folder.annotations}")
    print(_table(metrics))
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")


# --------------------------------------------------------------------------------------------------------------- predict


@dataclass(frozen=True)
class PredictOptions:
    """Objects in pictures: writes each picture with boxes, and detections.json."""

    checkpoint: Positional[Path]
    pictures: Positional[tuple[Path, ...]]
    """One or more picture files."""
    out: Path = Path("runs/predictions")
    threshold: float = 0.5
    """Leave out what scores less."""


def predict(words: list[str]) -> None:
    """Find the objects in pictures of your own."""
    options = _parse(PredictOptions, words, "ddetr-lite predict")
    from ddetr_lite.datasets.pictures import read_picture
    from ddetr_lite.engine.checkpoint import load_model
    from ddetr_lite.engine.predict import predict as find
    from ddetr_lite.plots.detection import boxes
    from ddetr_lite.plots.style import png

    if not options.pictures:
        raise Mistake("name at least one picture: ddetr-lite predict CHECKPOINT PICTURE...")
    if not 0 <= options.threshold <= 1:
        raise Mistake(f"--threshold {options.threshold} must lie in 0..1")
    loaded = load_model(options.checkpoint)
    pictures = {
        path: read_picture(path) for path in options.pictures
    }  # a mistyped path is found before anything is written
    options.out.mkdir(parents=True, exist_ok=True)
    results = []
    for path, pixels in pictures.items():
        found = find(loaded, pixels, options.threshold)
        axes = boxes(pixels, [f.box for f in found], [f.label for f in found], [f.score for f in found])
        drawn = options.out / f"{path.stem}.boxes.png"
        drawn.write_bytes(png(axes.figure))  # type: ignore[arg-type]
        height, width = pixels.shape[1:]
        objects = [
            {**dataclasses.asdict(f), "box": [round(x, 2) for x in f.box], "score": round(f.score, 4)} for f in found
        ]
        results.append({"file": str(path), "height": height, "width": width, "objects": objects})
        print(f"{path}: {len(found)} object{'' if len(found) == 1 else 's'} → {drawn}")
        for f in found:
            print(f"  {f.label:<16} {f.score:.2f}  " + " ".join(f"{x:7.1f}" for x in f.box))
    (options.out / "detections.json").write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


# ------------------------------------------------------------------------------------------------------------------ data


@dataclass(frozen=True)
class ShapesOptions:
    """Generate the `shapes` data set in COCO's format."""

    folder: Path = Path("data/shapes")
    shapes: Annotated[ShapesConfig, FLAT] = dataclasses.field(default_factory=ShapesConfig)


def data(words: list[str]) -> None:
    """Make data: `ddetr-lite data shapes`."""
    what, words = _take_positional(words, "WHAT", "shapes", "data shapes")
    if what != "shapes":
        raise Mistake(f"data {what!r} is unknown: choose 'shapes'")
    options = _parse(ShapesOptions, words, "ddetr-lite data shapes")
    from ddetr_lite.datasets.shapes import write_shapes

    print(f"{write_shapes(options.folder, options.shapes)} is ready.")


# --------------------------------------------------------------------------------------------------------------- convert


@dataclass(frozen=True)
class ConvertOptions:
    """Weights to and from other projects; the endings of the names say what is what.

    .pt is a checkpoint of this package; .pth or .safetensors the authors' official layout; a folder Hugging Face's
    (config.json and model.safetensors). Official COCO models have a logit for each of 91 category ids: on the way in they
    get the 80 real classes, on the way out the 91 ids again.
    """

    source: Positional[Path]
    target: Positional[Path]
    heads: int | None = None
    """Official files do not tell the number of attention heads: 8 unless you say so."""
    queries: int | None = None
    """Nor a two-stage model's number of queries: 300."""
    dilation: bool | None = None
    """Nor DC5: taken from "dc5" in the file's name."""


def convert(words: list[str]) -> None:
    """Bring weights in from the authors' or Hugging Face's files, or out to them."""
    options = _parse(ConvertOptions, words, "ddetr-lite convert")
    from ddetr_lite import convert as converting
    from ddetr_lite.engine.checkpoint import load_model, save_model
    from ddetr_lite.models.faster_rcnn import FasterRcnn

    source, target = options.source, options.target
    if target.exists():
        raise Mistake(f"{target} exists already: give another name")
    if source.suffix == ".pt":
        loaded = load_model(source)
        model, names, about = loaded.model, loaded.classes, loaded.about
    else:
        if source.is_dir():
            found = converting.read_hugging_face(source)
        else:
            found = converting.read_official(
                source, heads=options.heads, dilation=options.dilation, queries=options.queries
            )
        model, names = converting.with_class_names(found)
        about = {"converted_from": source.name}
    if isinstance(model, FasterRcnn):
        raise Mistake(f"{source} is a Faster R-CNN: only DETR and Deformable DETR have a form among the authors' files")
    if target.suffix == ".pt":
        save_model(target, model, names, about)
    elif target.suffix in (".pth", ".safetensors"):
        converting.write_official(converting.with_coco_ids(model, names), target)
    elif not target.suffix:
        converting.write_hugging_face(model, target, names)
    else:
        raise Mistake(
            f"{target} must end in .pt (this package), .pth or .safetensors (official), or be a folder's name"
        )
    count = sum(p.numel() for p in model.parameters())
    print(f"{source} → {target}: {type(model).__name__}, {count / 1e6:.1f}M parameters, {len(names)} classes")


# ----------------------------------------------------------------------------------------------------------------- bench


def bench(words: list[str]) -> None:
    """Measure what is claimed about speed: `ddetr-lite bench msda`, `ddetr-lite bench step`."""
    command = " ".join(["ddetr-lite bench", *words])
    what, words = _take_positional(words, "WHAT", "one of msda, step", "bench msda")
    if what == "step":
        from ddetr_lite.benchmarks import step

        step.run(_parse(step.StepOptions, words, "ddetr-lite bench step"), command)
        return
    if what != "msda":
        raise Mistake(f"bench {what!r} is unknown: choose 'msda' or 'step'")
    from ddetr_lite.benchmarks import msda

    options = _parse(msda.MsdaOptions, words, "ddetr-lite bench msda")
    result = msda.run(options, command)
    if options.out is not None:
        from ddetr_lite.plots import grouped_bars
        from ddetr_lite.plots.style import png

        title = "Forward and backward: times as fast as the form with grid_sample"
        options.out.with_suffix(".png").write_bytes(png(grouped_bars(msda.ratios(result), title, line=1.0)))
        print(f"{options.out.with_suffix('.json')} and .png are written.")


# ------------------------------------------------------------------------------------------------------------- the frame

COMMANDS: dict[str, Callable[[list[str]], None]] = {
    "train": train,
    "evaluate": evaluate,
    "predict": predict,
    "data": data,
    "convert": convert,
    "bench": bench,
}


def main(words: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0, 2 for a mistake of the user's, 130 after Ctrl-C."""
    words = list(sys.argv[1:] if words is None else words)
    try:
        if not words or words[0] in ("-h", "--help"):
            print(_help())
            return 0
        if words[0] not in COMMANDS:
            near = get_close_matches(words[0], COMMANDS, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"choose {', '.join(COMMANDS)}"
            raise Mistake(f"unknown command {words[0]!r}: {hint}")
        COMMANDS[words[0]](words[1:])
    except (Mistake, ValueError, OSError, FloatingPointError) as error:
        print(f"ddetr-lite: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nddetr-lite: stopped; a training run goes on with --resume", file=sys.stderr)
        return 130
    except SystemExit as leaving:  # tyro has shown a page of help
        return int(leaving.code or 0)
    return 0


def _help() -> str:
    lines = ["usage: ddetr-lite COMMAND ...", "", "commands:"]
    for name, command in COMMANDS.items():
        lines.append(f"  {name:<9} {(command.__doc__ or '').strip().splitlines()[0]}")
    return "\n".join([*lines, "", "ddetr-lite COMMAND --help shows the options of one."])


def _parse(kind: type[Options], words: list[str], program: str, extra: tuple[str, ...] = ()) -> Options:
    """The options of a dataclass. Raises Mistake in one line where tyro would print a box."""
    message = io.StringIO()
    try:
        with contextlib.redirect_stderr(message):
            return tyro.cli(kind, args=words, prog=program)
    except SystemExit as leaving:
        if not leaving.code:
            raise
        raise Mistake(_one_line(message.getvalue(), kind, words, program, extra)) from None


def _one_line(text: str, kind: type, words: list[str], program: str, extra: tuple[str, ...]) -> str:
    """What tyro says in a box, in one line; for an unknown option the nearest known one."""
    page = io.StringIO()
    with contextlib.redirect_stdout(page), contextlib.suppress(SystemExit):
        tyro.cli(kind, args=["--help"], prog=program)
    known = [*extra, *re.findall(r"(?<![\w-])--[a-z][a-z0-9.-]*", _plain(page.getvalue()))]
    for word in words:
        option = word.split("=")[0].replace("_", "-")
        if option.startswith("--") and option not in known:
            near = get_close_matches(option, known, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            return f"unknown option {option}: {hint}`{program} --help` lists all"
    titles = ("Value error", "Invalid choice", "Missing argument", "Required options", "Parsing error")
    lines = [line for line in _plain(text).splitlines() if line not in titles and not line.startswith(program)]
    said = re.split(r" (?:Argument|For full) helptext", " ".join(lines))[0]
    return said + f"; `{program} --help` lists all options"


def _plain(text: str) -> str:
    """Without colours, frames and empty lines."""
    stripped = (line.strip("│╭╮╰╯─ \t") for line in re.sub(r"\x1b\[[0-9;]*m", "", text).splitlines())
    return "\n".join(line for line in stripped if line)


def _take_positional(words: list[str], name: str, choices: str, example: str) -> tuple[str, list[str]]:
    if not words or words[0].startswith("-"):
        if words and words[0] in ("-h", "--help"):
            print(f"usage: ddetr-lite {example.split()[0]} {name} [options]\n\n{name}: {choices}\n")
            print(f"`ddetr-lite {example} --help` lists the options.")
            raise SystemExit(0)
        raise Mistake(f"{name} is missing ({choices}), for example: ddetr-lite {example}")
    return words[0], words[1:]


def _take_option(words: list[str], option: str) -> tuple[str | None, list[str]]:
    """The value of `--option value` or `--option=value`, and the other words."""
    for i, word in enumerate(words):
        if word == option:
            if i + 1 == len(words) or words[i + 1].startswith("-"):
                raise Mistake(f"{option} needs a value")
            return words[i + 1], words[:i] + words[i + 2 :]
        if word.startswith(f"{option}="):
            return word.split("=", 1)[1], words[:i] + words[i + 1 :]
    return None, words


def _table(metrics: dict[str, float]) -> str:
    """Metrics in two columns; −1 means that the set has no such objects."""
    lines = [f"  {name:<16} {value:.3f}" if value >= 0 else f"  {name:<16} –" for name, value in metrics.items()]
    return "\n".join(lines)
