"""The training loop, from the first line to the last.

Everything that happens is a function of the recipe: on a CPU a run that is killed and resumed ends with the same bits as one
that is not. One process or many, one piece a step or several: a step is the same.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from ddetr_lite.datasets.loading import Batch, RunSampler, loader
from ddetr_lite.engine.average import average_of, weights_to_use
from ddetr_lite.engine.data import datasets, order_of
from ddetr_lite.engine.distributed import World, same_bits, world
from ddetr_lite.engine.errors import threshold_of
from ddetr_lite.engine.evaluate import METRICS, ap_of, detect, in_words, results_of
from ddetr_lite.engine.fine_tuning import start_from
from ddetr_lite.engine.forecast import forecast
from ddetr_lite.engine.log import RunLog
from ddetr_lite.engine.optimization import learning_rate, make_optimizers, part_of
from ddetr_lite.engine.recipe_checks import check
from ddetr_lite.engine.recipes import Recipe
from ddetr_lite.engine.run import State, begin, check_data, circumstances, open_run
from ddetr_lite.engine.scaling import oddities
from ddetr_lite.engine.step import Step, compile_layers, counted_of
from ddetr_lite.engine.watch import choose_objects, watched_line
from ddetr_lite.models.presets import Model, build
from ddetr_lite.progress import hidden
from ddetr_lite.writing import alone_in, write_json


def train(
    recipe: Recipe,
    folder: str | Path,
    resume: bool = False,
    progress: bool = True,
    after_epoch: Callable[[Path], None] | None = None,
) -> dict[str, float]:
    """Train a recipe in a run folder, and return the last evaluation's metrics.

    resume: go on from `last.pt`; without it a folder that holds a run is an error, so that none is overwritten.
    after_epoch: called with the folder after each epoch, for example to draw curves.
    Raises ValueError for a recipe, data or folder that does not fit, FloatingPointError when `max_bad_steps` steps in a row
    had a gradient that is not finite.
    """
    check(recipe)
    folder = Path(folder)
    if resume and not folder.is_dir():
        raise ValueError(f"nothing to resume: {folder} does not exist; start without --resume")
    with (
        world(recipe.train.device) as place,
        same_bits(recipe.train.deterministic and place.device.type == "cuda"),
        alone_in(folder) if place.main else nullcontext(),
    ):
        return Run(recipe, folder, resume, progress and place.main, place).train(after_epoch)


class _Stopwatch:
    """Adds the time of training to a run's, lap by lap; what lies between a lap and the next start is not counted."""

    def __init__(self, state: State):
        self.state, self.began, self.pictures = state, 0.0, 0

    def start(self) -> None:
        self.began, self.pictures = time.perf_counter(), 0

    def lap(self) -> float:
        """Add the time since the last start or lap. Returns the pictures a second in it."""
        now = time.perf_counter()
        seconds, pictures = now - self.began, self.pictures
        self.state.seconds += seconds
        self.began, self.pictures = now, 0
        return pictures / max(seconds, 1e-9)


class Run:
    """A run between its first line and its last: what `train` does, in methods that can be read one by one."""

    def __init__(self, recipe: Recipe, folder: Path, resume: bool, progress: bool, place: World):
        self.recipe, self.config, self.folder, self.place, self.progress = recipe, recipe.train, folder, place, progress
        saved = open_run(recipe, folder, resume, place)
        self.training, self.validation = datasets(recipe, place, progress)
        if saved is not None:
            check_data(saved, self.training)
        self.order = order_of(self.config, self.training)
        self.steps = self.order.steps_per_epoch * self.config.epochs
        for oddity in oddities(recipe, self.steps):
            self.tell(oddity)
        self._batches(start=0)  # a batch that cannot be cut is an error before anything is built
        model = self._model(new=saved is None)
        self.state = State(model, make_optimizers(model, self.config), average_of(model, self.config.ema))
        self.step = Step(self.state, self.config, place)
        self.log, self.watched = RunLog(folder / "log.jsonl"), RunLog(folder / "watched.jsonl")
        if saved is not None:
            self.state.load(saved)
            if place.main:
                self.log.rewind(self.state.step, self.state.evaluated)
                self.watched.rewind(self.state.step, self.state.evaluated)
            return
        expected = None
        if self.config.forecast:
            expected = forecast(recipe, self.step, self.training, len(self.validation), self.order)
            self.tell(str(expected))
        # From here on the folder holds a run, and there is always a state to go on from.
        if place.main:
            begin(recipe, folder)
        self._write("start", 0, **circumstances(recipe, model, place, self.training, self.validation, self.steps))
        if expected is not None:
            self._write("forecast", 0, **expected.values())
        self._save()

    def _batches(self, start: int) -> RunSampler:
        place, config = self.place, self.config
        return RunSampler(self.order, config.epochs, start, place.rank, place.size, config.accumulate)

    def _model(self, new: bool) -> Model:
        begins = self.config.start_from if new else ""
        if not self.place.main:
            self.place.wait()  # until the first process has downloaded what is missing
        torch.manual_seed(self.config.seed)  # the same weights in every process
        model = build(self.recipe.model, len(self.training.classes), load_backbone=new and not begins)
        if self.place.main:
            self.place.wait()
        if begins:
            self.tell(start_from(model, self.training.classes, begins))
        model = model.to(self.place.device)
        if self.config.compile:
            compile_layers(model)
        if self.config.backbone_lr == 0:  # as in the official code: no gradient is computed for it at all
            for name, parameter in model.named_parameters():
                if part_of(name) == "backbone":
                    parameter.requires_grad_(False)
        return model

    def tell(self, text: str) -> None:
        """Say it on the terminal, above the progress bar."""
        if self.progress:
            tqdm.write(text)

    def _write(self, kind: str, step: int, **values: Any) -> None:
        if self.place.main:
            self.log.write(kind, step, **values)

    def train(self, after_epoch: Callable[[Path], None] | None = None) -> dict[str, float]:
        """From where the state stands to the end of the last epoch."""
        config, state, place, per_epoch = self.config, self.state, self.place, self.order.steps_per_epoch
        batches: Iterator[Batch] = iter(loader(self.training, self._batches(state.step), config.workers, place.device))
        metrics = self._evaluate_if_due()  # where a run was stopped between an epoch and its evaluation
        bar = tqdm(
            total=self.steps, initial=state.step, desc=self.recipe.name, unit="step", disable=hidden(self.progress),
            dynamic_ncols=True,
        )  # fmt: skip
        clock = _Stopwatch(state)
        while state.step < self.steps:
            epoch = state.step // per_epoch
            state.model.train()
            clock.start()
            while state.step < (epoch + 1) * per_epoch:
                pieces = [next(batches) for _ in range(config.accumulate)]
                rate = learning_rate(state.step, config, per_epoch)
                losses, norm = self.step(pieces, rate)
                clock.pictures += place.size * sum(len(piece.counts) for piece in pieces)
                bar.update()
                at_end = state.step % per_epoch == 0
                to_save = state.step % config.checkpoint_every == 0 and not at_end
                to_log = state.step % config.log_every == 0
                if not (to_log or to_save or at_end):
                    continue
                self._look_at_skipped(epoch)
                if to_log and state.bad_steps == 0:
                    speed = clock.lap()
                    loss = self._log_step(epoch, losses, norm, rate, speed)
                    bar.set_postfix_str(f"loss {loss:.2f}, {speed:.0f} pictures/s", refresh=False)
                if to_save:
                    clock.lap()
                    self._save()
                    clock.start()  # what was saved took time, and was no training
            clock.lap()
            self._save()  # an evaluation that fails loses nothing
            metrics = self._evaluate_if_due() or metrics
            if after_epoch is not None and place.main:
                after_epoch(self.folder)
        bar.close()
        place.wait()
        return metrics

    def _save(self) -> None:
        if self.place.main:
            self.state.save(self.folder, self.recipe, self.training.classes, len(self.training))

    def _log_step(self, epoch: int, losses: dict[str, Tensor], norm: Tensor, rate: float, speed: float) -> float:
        """Write a line of the log: the losses of the whole batch. Returns their sum."""
        # A process none of whose pictures has an object has no losses of hints: it counts as zero there.
        names = list(dict.fromkeys(name for own in self.place.gather(list(losses)) for name in own))
        zero = torch.zeros((), device=self.place.device)
        means = self.place.mean(torch.stack([losses.get(name, zero).float() for name in names]))
        values = dict(zip(names, means.tolist(), strict=True))
        memory = {}
        if self.place.device.type == "cuda":
            memory = {"memory_bytes": torch.cuda.max_memory_allocated(self.place.device)}
        self._write(
            "train", self.state.step, epoch=epoch + 1, loss=sum(values.values()),
            **{f"loss/{k}": v for k, v in values.items()}, gradient_norm=float(norm), lr=rate,
            pictures_per_second=speed, train_seconds=self.state.seconds, **memory,
        )  # fmt: skip
        return sum(values.values())

    def _look_at_skipped(self, epoch: int) -> None:
        """Name the steps that were skipped, and stop where nothing but such steps is left."""
        state, folder = self.state, self.folder
        skipped, state.bad_steps = self.step.guard.look(state.bad_steps)
        for bad in skipped:
            self.tell(f"step {bad.step + 1} was skipped, image ids {', '.join(map(str, bad.pictures))}: {bad.reason}")
            self._write("skip", bad.step + 1, epoch=epoch + 1, pictures=bad.pictures, reason=bad.reason)
        if state.bad_steps >= self.config.max_bad_steps:
            self._save()
            self._write("diverged", state.step, epoch=epoch + 1, reason=skipped[-1].reason)
            raise FloatingPointError(
                f"{state.bad_steps} steps in a row had no finite gradient, the last with image ids "
                f"{', '.join(map(str, skipped[-1].pictures))} ({skipped[-1].reason}). The weights are as before these steps: "
                f"go on in a new run, --start-from {folder / 'last.pt'}, with a lower --lr, and look at these pictures"
            )

    def _evaluate_if_due(self) -> dict[str, float]:
        """Evaluate where an epoch has ended after which it is wanted, and that was not done; else {}."""
        state, every = self.state, self.config.evaluate_every
        epoch, within = divmod(state.step, self.order.steps_per_epoch)
        wanted = state.step == self.steps or (every and epoch and epoch % every == 0)
        if within or not wanted or state.evaluated == state.step:
            return {}
        metrics = self._evaluate(epoch)
        state.evaluated = state.step
        self._save()
        return metrics

    def _evaluate(self, epoch: int) -> dict[str, float]:
        """AP of the model, or of its running average; each process looks at its share of the pictures."""
        state, place = self.state, self.place
        model = weights_to_use(state.model, state.average)
        place.share(counted_of(model))  # each process has counted its own pictures; the first one's model is saved
        found = place.gather(
            dict(
                detect(
                    model,
                    self.validation,
                    # No more than training holds.
                    batch=min(16, max(1, self.config.batch // (place.size * self.config.accumulate))),
                    workers=self.config.workers,
                    rank=place.rank,
                    size=place.size,
                    padded=self.recipe.data.overfit > 0,
                )
            )
        )
        metrics: dict[str, float] = {}
        if place.main:
            detections = {image_id: d for share in found for image_id, d in share.items()}
            metrics = ap_of(detections, self.validation, self.recipe.data.size_bands)
            self._write("evaluate", state.step, epoch=epoch, train_seconds=state.seconds, **metrics)
            self.tell(f"epoch {epoch}: " + ", ".join(f"{k} {in_words(metrics[k])}" for k in METRICS))
            heading = {"epoch": epoch, "step": state.step}
            results = results_of(detections, self.validation)
            write_json(self.folder / "detections.json", {**heading, "detections": results})
            line = watched_line(model, self.validation, choose_objects(self.validation), epoch, state.step)
            self.watched.write("watch", **line)
            threshold = threshold_of(detections, self.validation)
            state.save_best(self.folder, self.recipe, self.training.classes, epoch, metrics, threshold=threshold)
        best: tuple[dict[str, float], float] = place.gather((metrics, state.best))[0]
        metrics, state.best = best
        return metrics
