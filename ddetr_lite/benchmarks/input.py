"""`ddetr-lite bench input`: does training wait for pictures?

The same epoch twice: from files through the loading processes, as in a run, and from batches that lie on the device already.
Both make the same training steps; what differs is where pictures come from.
"""

import statistics
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from ddetr_lite.benchmarks.machine import heading, write_result
from ddetr_lite.datasets.loading import Batch, Order, RunSampler, loader
from ddetr_lite.engine.data import datasets, order_of
from ddetr_lite.engine.distributed import World, pick_device
from ddetr_lite.engine.optimization import make_optimizers
from ddetr_lite.engine.recipes import recipe, recipe_names
from ddetr_lite.engine.run import State
from ddetr_lite.engine.step import Step
from ddetr_lite.models.presets import build


@dataclass(frozen=True)
class InputOptions:
    """Time an epoch from files against the same epoch from batches that are on the device."""

    recipe: str = "coco-mini"
    model: str | None = None
    """A row of the paper's table; by default the recipe's."""
    folder: str | None = None
    """A folder in COCO's format; by default the recipe's."""
    cache: Literal["none", "memory", "disk"] = "none"
    """none: every picture is decoded anew in every epoch."""
    batch: int = 8
    workers: int = 12
    limit: int = 0
    """Only the first pictures; 0: all."""
    repeats: int = 3
    device: str = "auto"
    out: Path | None = None
    """A name without an ending: NAME.json is written."""


def run(options: InputOptions, command: str) -> dict[str, Any]:
    """Measure, print, write NAME.json where a name was given, and return what stands there."""
    if options.recipe not in recipe_names():
        raise ValueError(f"recipe {options.recipe!r} is unknown: choose one of {', '.join(recipe_names())}")
    chosen = recipe(options.recipe, options.model)
    place = World(pick_device(options.device))
    data = replace(chosen.data, cache=options.cache, limit=options.limit, folder=options.folder or chosen.data.folder)
    chosen = replace(chosen, data=data, train=replace(chosen.train, batch=options.batch, workers=options.workers))
    training, _ = datasets(chosen, place, progress=True)
    order = order_of(chosen.train, training)
    torch.manual_seed(0)
    model = build(chosen.model, len(training.classes), load_backbone=False).to(place.device).train()
    step = Step(State(model, make_optimizers(model, chosen.train), None), chosen.train, place)
    # The first epoch starts the loading processes and fills caches. The others follow at once: in a pause the processes would
    # make batches for later. Then each is made again from what has been moved to the device.
    batches = iter(loader(training, RunSampler(order, options.repeats + 1), options.workers, place.device))
    _epoch(step, _take(batches, order), place)
    seconds: dict[str, list[float]] = {"from files": [], "on the device": []}
    for _ in range(options.repeats):
        seconds["from files"].append(_epoch(step, _take(batches, order), place))
    for repeat in range(1, options.repeats + 1):
        ready = [
            batch.to(place.device) for batch in loader(training, order.epoch(repeat), options.workers, place.device)
        ]
        seconds["on the device"].append(_epoch(step, ready, place))
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    pictures = order.steps_per_epoch * min(order.batch, order.length)
    result = {
        **heading(command, place.device),
        "pictures": pictures,
        "seconds": seconds,
        "pictures per second": {name: pictures / s for name, s in medians.items()},
        "speed from files, as a share of that from the device": medians["on the device"] / medians["from files"],
    }
    for name, median in medians.items():
        share = medians["on the device"] / median
        print(f"{name:14}{median:8.2f} s an epoch, {pictures / median:8.1f} pictures/s, {share:.3f} × on the device")
    if options.out is not None:
        print(f"{write_result(result, options.out)} is written.")
    return result


def _take(batches: Iterable[Batch], order: Order) -> Iterable[Batch]:
    """The batches of one epoch from those of all."""
    return (batch for _, batch in zip(range(order.steps_per_epoch), batches, strict=False))


def _epoch(step: Step, batches: Iterable[Batch], place: World) -> float:
    """Seconds that the steps of an epoch take."""
    start = place.now()
    for batch in batches:
        step([batch], rate=1e-6)
    step.guard.look(0)
    return place.now() - start
