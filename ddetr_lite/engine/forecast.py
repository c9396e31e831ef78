"""How long a run will take and how much memory it needs, from a few measured steps, before the first one.

The steps that are measured change nothing: parameters and buffers are put back, optimizers forget, and random numbers are drawn
anew in every step anyway.
"""

import contextlib
import math
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ddetr_lite.batching import RawBatch
from ddetr_lite.datasets.coco import CocoDetection
from ddetr_lite.datasets.loading import Batch, Order
from ddetr_lite.datasets.transforms import AugmentConfig, resized_size
from ddetr_lite.engine.distributed import World
from ddetr_lite.engine.recipes import Recipe
from ddetr_lite.engine.step import Step
from ddetr_lite.memory import free_bytes, taken_by
from ddetr_lite.wording import duration

STEPS = 3  # measured, behind one that is not
SIDE = 400
"""Memory of a CPU is measured on pictures of about this side: they always fit, and larger ones need as much more as they have
pixels. (DETR's attention needs more than that, where it is dilated.)"""
CLEARLY = 1.5  # times what is free: a need that is estimated to be larger is an error, a smaller one is said


@dataclass(frozen=True)
class Forecast:
    """What is expected of a run: seconds, and bytes of GPU memory (0 on a CPU)."""

    steps: int
    step_seconds: float
    """Of computing, without waiting for pictures."""
    loading_seconds: float
    """To read and augment the pictures of a step, all loading processes together."""
    workers: int
    """These processes; without any, the model waits while pictures are loaded."""
    evaluations: int
    evaluation_seconds: float
    peak_bytes: int
    device_bytes: int
    note: str = ""
    """What there is to say about a CPU's memory."""

    @property
    def seconds(self) -> float:
        """Of the whole run."""
        both = (self.step_seconds, self.loading_seconds)
        return self.steps * (max(both) if self.workers else sum(both)) + self.evaluations * self.evaluation_seconds

    def values(self) -> dict[str, Any]:
        """For the log."""
        return {**vars(self), "seconds": self.seconds}

    def __str__(self) -> str:
        text = (
            f"Forecast: {self.steps:,} steps of {self.step_seconds * 1e3:.0f} ms and {self.evaluations} evaluations, about "
            f"{duration(self.seconds)}"
        )
        if self.device_bytes:
            text += f"; at most {self.peak_bytes / 1e9:.1f} of {self.device_bytes / 1e9:.0f} GB on the GPU"
        if self.loading_seconds > (1.0 if self.workers else 0.2) * self.step_seconds:
            text += f". Loading pictures takes {self.loading_seconds * 1e3:.0f} ms a step: more --workers, or --cache memory"
        return f"{text}." + (f" {self.note}" if self.note else "")


def forecast(recipe: Recipe, step: Step, training: CocoDetection, validation: int, order: Order) -> Forecast:
    """Measure the first batch of the run, and on a GPU the largest batch that can come.

    validation: pictures in an evaluation. Raises ValueError when the memory is too small, of the GPU or, on Linux, of the
    machine, with the remedy.
    """
    config, place, model = recipe.train, step.place, step.state.model
    part = min(order.batch, order.length) // place.size // config.accumulate
    keys = order.epoch(0).batches[0][: part * config.accumulate]
    start = time.perf_counter()
    samples = [training[key] for key in keys]
    loading = (time.perf_counter() - start) / max(config.workers, 1)
    pieces = [Batch.of(samples[i * part : (i + 1) * part]) for i in range(config.accumulate)]
    on_gpu = place.device.type == "cuda"
    with _nothing_changed(step), _memory_is_enough(config.accumulate, place):
        note = "" if on_gpu else _check_memory(recipe, step, samples[:part])
        step.gradient(pieces)
        seconds = _update(step)
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(place.device)
            step.gradient([largest(piece, recipe.augment) for piece in pieces])
        start = place.now()
        for _ in range(STEPS):
            step.gradient(pieces)
        seconds += (place.now() - start) / STEPS
        model.eval()
        with torch.no_grad():
            start = place.now()
            model(pieces[0].images)
            looking = (place.now() - start) / part * validation / place.size
    peak = torch.cuda.max_memory_allocated(place.device) if on_gpu else 0
    if on_gpu:
        torch.cuda.reset_peak_memory_stats(place.device)  # the log is about the run
    evaluations = -(-config.epochs // config.evaluate_every) if config.evaluate_every else 1
    return Forecast(
        steps=order.steps_per_epoch * config.epochs,
        step_seconds=seconds,
        loading_seconds=loading,
        workers=config.workers,
        evaluations=max(evaluations, 1),
        evaluation_seconds=looking,
        peak_bytes=peak,
        device_bytes=torch.cuda.get_device_properties(place.device).total_memory if on_gpu else 0,
        note=note,
    )


@contextlib.contextmanager
def _nothing_changed(step: Step) -> Iterator[None]:
    """Steps that are tried within leave no trace: buffers are put back, optimizers forget. (Parameters: `_update`.)"""
    model = step.state.model.train()
    buffers = [b.clone() for b in model.buffers()]
    try:
        yield
    finally:
        model.train()
        model.zero_grad(set_to_none=True)
        for optimizer in step.state.optimizers:
            optimizer.state.clear()
        with torch.no_grad():
            for buffer, before in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(before)


@contextlib.contextmanager
def _memory_is_enough(accumulate: int, place: World) -> Iterator[None]:
    """Turn torch's error of a GPU whose memory is too small into one that says what to do."""
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise ValueError(
            f"the largest batch does not fit into the memory of {torch.cuda.get_device_name(place.device)}: take each step in "
            f"pieces with --accumulate {accumulate * 2}, or lower --batch or --max-side"
        ) from error


def _check_memory(recipe: Recipe, step: Step, samples: list[Any]) -> str:
    """What to say where the largest piece of a batch, of as many pictures as these, hardly fits into main memory; else "".

    Raises ValueError where it is clear that it does not.
    """
    part, few = len(samples), samples[:2]  # a batch norm counts over more than one
    whole = largest(Batch.of(few), recipe.augment)
    shrink = max(1.0, math.sqrt(math.prod(whole.images.pixels.shape[-2:])) / SIDE)
    measured = [_shrunk(whole, shrink)]
    free = free_bytes()
    step.gradient(measured)  # what is made once is not counted
    step.state.model.zero_grad(set_to_none=True)
    taken = taken_by(lambda: step.gradient(measured))
    if taken is None or free is None:
        return ""
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # that torchrun started on this machine
    weights = sum(p.numel() * p.element_size() for p in step.parameters if p.requires_grad)
    a_picture = max(taken - weights, 0) * shrink**2 / len(few)

    def need(pictures: int) -> float:
        return processes * (3 * weights + pictures * a_picture)  # gradients, and two moments

    if need(part) <= free:
        return ""
    remedy = (
        "take smaller pictures (--short-sides, --eval-short-side, --max-side) or a smaller backbone, as coco-mini does"
    )
    pieces = next((k for k in range(2, part + 1) if part % k == 0 and need(part // k) <= free), None)
    if pieces:
        remedy = f"take each step in pieces with --accumulate {pieces * recipe.train.accumulate}, or {remedy}"
    text = (
        f"step with {part} picture{'s' * (part > 1)} at a time, where they are as large as they can be, needs about "
        f"{need(part) / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free: {remedy}"
    )
    if need(part) > CLEARLY * free:
        raise ValueError(f"a {text}; --no-forecast tries it all the same")
    return f"A {text}, should the system end the run."


def _shrunk(batch: Batch, by: float) -> Batch:
    """The same batch of grey pictures with sides shorter by this factor."""
    (height, width), sizes = batch.images.pixels.shape[-2:], batch.images.sizes
    pixels = batch.images.pixels[..., : math.ceil(height / by), : math.ceil(width / by)]
    images = RawBatch(pixels, [(math.ceil(h / by), math.ceil(w / by)) for h, w in sizes])
    return replace(batch, images=images, boxes=batch.boxes / by)


def _update(step: Step) -> float:
    """Seconds of an update by the gradient that lies there. Parameters are put back; the optimizers' moments stay for now."""
    parameters = [p for p in step.state.model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in parameters]
    for _ in range(2):  # the first makes room for the moments
        start = step.place.now()
        for optimizer in step.state.optimizers:
            optimizer.step()
        seconds = step.place.now() - start
    with torch.no_grad():
        torch._foreach_copy_(parameters, before)
    return seconds


def largest(batch: Batch, augment: AugmentConfig) -> Batch:
    """The same objects on grey pictures as large as they can become, as if half of them were upright, half wide, and 2 : 1."""
    count = len(batch.counts)
    side = max([*augment.short_sides, augment.eval_short_side]) if augment.short_sides else 0
    height, width = batch.images.pixels.shape[-2:]
    if side:
        height, width = resized_size(side, min(2 * side, augment.max_side), side, augment.max_side)
    square = max(height, width) if count > 1 else height
    pixels = torch.full((count, 3, square, width), 128, dtype=torch.uint8)
    return Batch(
        RawBatch(pixels, [(height, width)] * count),
        torch.zeros(0, 4) if not len(batch.boxes) else _inside(batch.boxes, (height, width)),
        batch.labels, batch.counts, batch.image_ids, batch.original_sizes,
    )  # fmt: skip


def _inside(boxes: Tensor, size: tuple[int, int]) -> Tensor:
    limit = torch.tensor((size[1], size[0], size[1], size[0]), dtype=boxes.dtype)
    clipped = torch.minimum(boxes, limit)
    return torch.cat((torch.minimum(clipped[:, :2], clipped[:, 2:] - 1), clipped[:, 2:]), dim=1)
