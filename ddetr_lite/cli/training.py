"""`ddetr-lite train`."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

from ddetr_lite.cli.data import make_shapes
from ddetr_lite.cli.parsing import FLAT, Mistake, parse, table, take_option, take_positional
from ddetr_lite.engine.recipes import Recipe, recipe_names


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
    name, words = take_positional(words, "RECIPE", f"one of {', '.join(recipe_names())}", "train shapes")
    model, words = take_option(words, "--model")
    out, words = take_option(words, "--out")
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
    options: Any = parse(kind, words, f"ddetr-lite train {name}", extra=("--model", "--out", "--resume"))
    chosen = Recipe(name, **{f.name: getattr(options, f.name) for f in parts})
    if name == "shapes" and chosen.data.folder == recipe(name).data.folder:
        make_shapes(chosen.data.folder)
    print(f"Training {name} in {folder}; stop with Ctrl-C, go on with --resume.", flush=True)
    metrics = run(chosen, folder, resume=resume, after_epoch=save_curves)
    if metrics:
        print(table(metrics))
    print(f"{folder}: best.pt (model), last.pt (to go on), log.jsonl, curves.png")
