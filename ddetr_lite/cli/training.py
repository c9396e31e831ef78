"""`ddetr-lite train`."""

import dataclasses
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from ddetr_lite.cli.data import make_shapes
from ddetr_lite.cli.parsing import FLAT, Mistake, option_of, parse, table, take_flag, take_option, take_positional

if TYPE_CHECKING:  # torch comes with them, and takes seconds: not for those who only ask what commands there are
    from ddetr_lite.datasets.transforms import AugmentConfig
    from ddetr_lite.engine.recipes import Recipe

RECIPES = {
    "shapes": "generated pictures of 96 px, a small model from random weights: for a CPU",
    "shapes-hard": "generated pictures of 256 px with sixteen classes: for a GPU",
    "coco-mini": "short sides of 224 to 320 px, MobileNetV2 with ImageNet's weights: for a small GPU",
    "coco": "short sides of 480 to 800 px, ResNet-50 with ImageNet's weights, the papers' sizes: for GPUs",
}
"""What the recipes are for, without reading them, which takes seconds."""

_IDLE: "tuple[tuple[tuple[str, ...], Callable[[Recipe], bool], str], ...]" = (
    (("drop_epoch",), lambda recipe: recipe.train.schedule != "step", "with --schedule step"),
    (("muon_lr", "muon_weight_decay"), lambda recipe: recipe.train.optimizer != "muon", "with --optimizer muon"),
    (
        ("crop", "one_size"),
        lambda recipe: not recipe.augment.short_sides,
        "where pictures are resized in training (--short-sides)",
    ),
    (
        ("max_side",),
        lambda recipe: not (recipe.augment.short_sides or recipe.augment.eval_short_side),
        "where pictures are resized (--short-sides, --eval-short-side)",
    ),
    (("anchor_size",), lambda recipe: not getattr(recipe.model, "two_stage", True), "in a model with --two-stage"),
    (("sampling_lr",), lambda recipe: not hasattr(recipe.model, "points"), "in Deformable DETR"),
)
"""Options, when a recipe does not look at them, and where it would: given all the same, they change nothing."""


def train(words: list[str]) -> None:
    """Train a recipe, or go on with a run.

    ddetr-lite train shapes
    ddetr-lite train shapes --model detr --lr 1e-4 --out runs/detr
    ddetr-lite train shapes --out runs/detr --resume
    torchrun --nproc-per-node 4 -m ddetr_lite train coco --folder data/coco
    """
    name, words = take_positional(words, "RECIPE", f"one of {', '.join(RECIPES)}", "train shapes", RECIPES)
    from ddetr_lite.engine.recipe_checks import check

    out, words = take_option(words, "--out")
    resume, words = take_flag(words, "--resume")
    profiled, words = take_flag(words, "--profile")
    folder = Path(out or f"runs/{name}")
    base, words = _recipe_to_go_on(name, folder, words) if resume else _recipe_to_begin(name, words)
    chosen = _with_options(base, words)
    if not resume:
        chosen, reasons = _followed(chosen, base, words)
        for reason in reasons:
            _say(reason)
    check(chosen)  # before minutes are spent on data
    make_shapes(name, chosen.data.folder)
    if profiled:
        from ddetr_lite.engine.profile import profile

        _say("\n".join(profile(chosen).lines()))
        return
    _run(chosen, folder, resume)


def _recipe_to_go_on(name: str, folder: Path, words: list[str]) -> "tuple[Recipe, list[str]]":
    """That of the run in the folder."""
    from ddetr_lite.engine.recipes import read_recipe

    if any(option_of(word) == "--model" for word in words):
        raise Mistake("--model cannot change when a run goes on: leave it out")
    path = folder / "recipe.json"
    if not path.exists():
        raise Mistake(f"nothing to resume: {path} does not exist; name the run's folder with --out")
    chosen = read_recipe(path)
    if chosen.name != name:
        raise Mistake(f"{folder} is a run of recipe {chosen.name!r}, not {name!r}")
    return chosen, words


def _recipe_to_begin(name: str, words: list[str]) -> "tuple[Recipe, list[str]]":
    """The named recipe, whose defaults a model or a checkpoint decide: so these are read first."""
    from ddetr_lite.engine.checkpoint import load_model
    from ddetr_lite.engine.fine_tuning import with_model_of
    from ddetr_lite.engine.recipes import recipe

    model, words = take_option(words, "--model")
    source, words = take_option(words, "--start-from")
    chosen = recipe(name, model)
    if source is None:
        return chosen, words
    loaded = load_model(source)
    if model is None:
        chosen = with_model_of(loaded, name)
    chosen = dataclasses.replace(chosen, augment=_sizes_of(loaded.about, chosen.augment, words))
    return dataclasses.replace(chosen, train=dataclasses.replace(chosen.train, start_from=source)), words


def _sizes_of(about: dict[str, Any], own: "AugmentConfig", words: list[str]) -> "AugmentConfig":
    """Pictures as large as those that the checkpoint learned from: at another size it would have to learn much anew.

    words: the user's, which may name other sizes; then the checkpoint's largest side does not hold for them.
    """
    from ddetr_lite.engine.checkpoint import sizes_of

    named = {"--short-sides", "--eval-short-side"} & {option_of(word) for word in words}
    silent = len(named) == 2  # nothing is taken over
    sizes = sizes_of(about)
    if not sizes:
        if about.get("recipe", {}).get("augment") and not silent:
            _say(
                "The checkpoint learned from pictures as they are, without resizing; this recipe's short sides are "
                f"{own.short_sides or 'those of the files'}. --short-sides and --eval-short-side give others."
            )
        return own
    if named:
        sizes.pop("max_side", None)
    chosen = dataclasses.replace(own, **sizes)
    if chosen != own and not silent:
        _say(
            f"Pictures are resized as the checkpoint's were: short sides {chosen.short_sides}, {chosen.eval_short_side} in "
            f"evaluation, no side above {chosen.max_side}. --short-sides, --eval-short-side and --max-side give others."
        )
    return chosen


def _with_options(base: "Recipe", words: list[str]) -> "Recipe":
    from ddetr_lite.engine.recipes import Recipe
    from ddetr_lite.models.presets import ROWS

    parts = [f for f in dataclasses.fields(Recipe) if f.name != "name"]
    kind = dataclasses.make_dataclass(
        "TrainOptions",
        [(f.name, Annotated[type(getattr(base, f.name)), FLAT], getattr(base, f.name)) for f in parts],
        frozen=True,
    )
    kind.__doc__ = (
        f"Train the recipe {base.name!r}. Besides these: --model ROW (a row of the paper's table, as there without hints: "
        f"{', '.join(ROWS)}), --out FOLDER (default runs/{base.name}), --resume (go on with the run in that folder), --profile "
        "(only measure where the time of a step goes)."
    )
    extra = ("--model", "--out", "--resume", "--profile")
    options: Any = parse(kind, words, f"ddetr-lite train {base.name}", extra, _options_of_other_models())
    return Recipe(base.name, **{f.name: getattr(options, f.name) for f in parts})


def _options_of_other_models() -> dict[str, str]:
    """Each option of some model, and the models that have it."""
    from ddetr_lite.models.presets import ARCHITECTURES

    names = {"detr": "DETR", "deformable-detr": "Deformable DETR", "faster-rcnn": "Faster R-CNN"}
    owners: dict[str, list[str]] = {}
    for architecture, config in ARCHITECTURES.items():
        for field in dataclasses.fields(config):
            owners.setdefault("--" + field.name.replace("_", "-"), []).append(names.get(architecture, architecture))
    return {option: " and ".join(models) for option, models in owners.items()}


def _followed(chosen: "Recipe", base: "Recipe", words: list[str]) -> "tuple[Recipe, list[str]]":
    """What follows from the options that the user gave, and why."""
    from ddetr_lite.engine.overfitting import as_overfitting
    from ddetr_lite.engine.recipe_checks import check
    from ddetr_lite.engine.scaling import follow

    named = {option_of(word).lstrip("-").replace("-", "_") for word in words if word.startswith("--")}
    check(chosen)
    if chosen.data.overfit and "schedule" not in named:
        chosen = dataclasses.replace(chosen, train=dataclasses.replace(chosen.train, schedule="constant"))
    chosen, reasons = follow(chosen, base, named)
    if chosen.data.overfit:
        chosen = as_overfitting(chosen, named)
        few = _few(chosen)
        reasons.append(
            f"Overfitting {few} picture{'s' * (few != 1)}: no augmentation, a constant learning rate, evaluated on what it was "
            "trained on."
        )
    for options, idle, where in _IDLE:
        reasons += [
            f"--{option.replace('_', '-')} is looked at only {where}."
            for option in options
            if option in named and idle(chosen)
        ]
    return chosen, reasons


def _few(chosen: "Recipe") -> int:
    """Pictures to learn by heart."""
    return min(chosen.data.overfit, chosen.data.limit or chosen.data.overfit)


def _run(chosen: "Recipe", folder: Path, resume: bool) -> None:
    from ddetr_lite.engine.distributed import is_main
    from ddetr_lite.engine.evaluate import in_words
    from ddetr_lite.engine.overfitting import passed, verdict
    from ddetr_lite.engine.run_results import read_run
    from ddetr_lite.engine.train import train as train_run
    from ddetr_lite.plots.report import write_report
    from ddetr_lite.plots.training import save_curves

    _say(f"Training {chosen.name} in {folder}; stop with Ctrl-C, go on with --resume.")
    metrics = train_run(chosen, folder, resume=resume, after_epoch=_now_and_then(save_curves))
    if not metrics and resume:
        _say("Nothing was left to do: this run is finished. `ddetr-lite report` draws it anew.")
    run = read_run(folder) if metrics else None
    if run is not None and is_main():
        save_curves(folder)
        write_report(folder)
        _say(table(metrics))
        if run.best and run.best["step"] != run.evaluations[-1]["step"]:
            _say(f"These are the last epoch's. best.pt is of epoch {run.best['epoch']}: AP {in_words(run.best['AP'])}")
    _say(f"{folder}: best.pt (model), last.pt (to go on), log.jsonl, curves.png, report.html")
    if run is not None and chosen.data.overfit:
        # What was learned by heart once counts: a rate that stays goes on to shake.
        best = max(run.evaluations, key=lambda line: line["AP50"])
        pictures = run.start.get("pictures", _few(chosen))  # those that have an object may be fewer than asked for
        _say(verdict(best, pictures))
        if not passed(best):
            raise SystemExit(1)  # `gate && train` stops here


def _now_and_then(draw: Callable[[Path], None], pause: float = 10.0) -> Callable[[Path], None]:
    """At most once in `pause` seconds: an epoch of a few pictures takes less time than its curves."""
    last = -math.inf

    def call(folder: Path) -> None:
        nonlocal last
        if time.monotonic() - last >= pause:
            draw(folder)
            last = time.monotonic()

    return call


def _say(text: str) -> None:
    """Once, also where torchrun has started several processes."""
    from ddetr_lite.engine.distributed import is_main

    if is_main():
        print(text, flush=True)
