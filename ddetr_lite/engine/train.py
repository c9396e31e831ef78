"""The training loop, from the first line to the last.

A run lives in a folder: `recipe.json`, `log.jsonl`, `last.pt` (training state) and `best.pt` (the model with the best AP
so far). Everything that happens is a function of the recipe: on a CPU a run that is killed and resumed ends with the
same bits as one that is not.
"""

import json
import math
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm import tqdm

from ddetr_lite.datasets.coco import CocoDetection, CocoFolder, EpochSampler, collate
from ddetr_lite.datasets.transforms import eval_transform, train_transform
from ddetr_lite.engine.checkpoint import model_content, read, save_model, write_atomically
from ddetr_lite.engine.evaluate import METRICS, evaluate
from ddetr_lite.engine.log import RunLog
from ddetr_lite.engine.optimization import learning_rate, make_optimizers, part_of
from ddetr_lite.engine.recipes import Recipe, TrainConfig, check, recipe_to_dict
from ddetr_lite.models.faster_rcnn import FasterRcnnConfig
from ddetr_lite.models.presets import Model, build


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
    Raises ValueError for a recipe, data or folder that does not fit, FloatingPointError for a loss that is not finite.
    """
    check(recipe)
    config, folder = recipe.train, Path(folder)
    device = pick_device(config.device)
    state = _open_run(recipe, folder, resume)
    torch.manual_seed(config.seed)

    training, validation = datasets(recipe)
    _check_queries(recipe, training)
    model = build(recipe.model, len(training.classes)).to(device)
    if config.backbone_lr == 0:  # as in the official code: no gradient is computed for it at all
        for name, parameter in model.named_parameters():
            if part_of(name) == "backbone":
                parameter.requires_grad_(False)
    optimizers = make_optimizers(model, config)
    log = RunLog(folder / "log.jsonl")
    steps_per_epoch = len(EpochSampler(len(training), config.batch, config.seed, epoch=0))
    groups = training.orientations() if config.group_orientations else None
    total = steps_per_epoch * config.epochs
    step, best, seconds = 0, -1.0, 0.0
    if state is None:
        log.write("start", 0, **_circumstances(recipe, model, device, training, validation, total))
    else:
        model.load_state_dict(state["model"])
        for optimizer, saved in zip(optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        step, best, seconds = state["step"], state["best"], state["seconds"]
        log.rewind(step)
        torch.set_rng_state(state["rng"])
        if device.type == "cuda":
            torch.cuda.set_rng_state(state["cuda_rng"], device)

    metrics: dict[str, float] = {}
    bar = tqdm(total=total, initial=step, desc=recipe.name, unit="step", disable=not progress, dynamic_ncols=True)
    for epoch in range(step // steps_per_epoch, config.epochs):
        model.train()
        start = step % steps_per_epoch
        sampler = EpochSampler(len(training), config.batch, config.seed, epoch, start, groups=groups)
        loader: DataLoader[Any] = DataLoader(
            training,
            batch_sampler=sampler,
            num_workers=config.workers,
            collate_fn=collate,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # the global generator belongs to the model, or a resumed run would differ
        )
        since, seen = time.perf_counter(), 0
        for images, targets in loader:
            rate = learning_rate(step, config, steps_per_epoch)
            for group in (group for optimizer in optimizers for group in optimizer.param_groups):
                group["lr"] = rate * group["factor"]

            with torch.autocast(device.type, torch.bfloat16, enabled=use_bf16(config, device)):
                losses: dict[str, Tensor] = model(images, targets)
            loss = torch.stack(list(losses.values())).sum()
            if not torch.isfinite(loss):
                pictures = ", ".join(str(int(t["image_id"])) for t in targets)
                raise FloatingPointError(
                    f"the loss is {loss.item()} at step {step} (image ids {pictures}): lower --lr, or look at these pictures. "
                    f"The run stands at its last checkpoint in {folder}"
                )
            model.zero_grad(set_to_none=True)
            loss.backward()
            norm = nn.utils.clip_grad_norm_(model.parameters(), config.clip_norm or math.inf)
            for optimizer in optimizers:
                optimizer.step()

            step, seen = step + 1, seen + len(images)
            if step % config.log_every == 0:
                now = time.perf_counter()
                seconds, speed = seconds + now - since, seen / (now - since)
                since, seen = now, 0
                values = {f"loss/{k}": v.item() for k, v in losses.items()}
                log.write(
                    "train", step, epoch=epoch + 1, loss=loss.item(), **values, gradient_norm=float(norm), lr=rate,
                    pictures_per_second=speed, train_seconds=seconds,
                )  # fmt: skip
                bar.set_postfix_str(f"loss {loss.item():.2f}, {speed:.0f} pictures/s", refresh=False)
            bar.update()
            if step % config.checkpoint_every == 0 and step % steps_per_epoch:
                seconds, seen = seconds + time.perf_counter() - since, 0
                _save_state(folder, model, optimizers, recipe, training.classes, step, best, seconds)
                since = time.perf_counter()
        seconds += time.perf_counter() - since

        last = epoch + 1 == config.epochs
        if last or (config.evaluate_every and (epoch + 1) % config.evaluate_every == 0):
            metrics = evaluate(model, validation, recipe.data.size_bands, workers=config.workers)
            log.write("evaluate", step, epoch=epoch + 1, train_seconds=seconds, **metrics)
            bar.write(f"epoch {epoch + 1}: " + ", ".join(f"{k} {metrics[k]:.3f}" for k in METRICS))
            if metrics["AP"] >= best:
                best = metrics["AP"]
                about = {"recipe": recipe_to_dict(recipe), "epoch": epoch + 1, "step": step, "metrics": metrics}
                save_model(folder / "best.pt", model, training.classes, about)
        _save_state(folder, model, optimizers, recipe, training.classes, step, best, seconds)
        if after_epoch is not None:
            after_epoch(folder)
    bar.close()
    return metrics


def datasets(recipe: Recipe) -> tuple[CocoDetection, CocoDetection]:
    """The training set, augmented, and the validation set with the same classes (the same pictures under `overfit`)."""
    data, seed = recipe.data, recipe.train.seed
    limit = data.limit or None
    training = CocoDetection(
        CocoFolder.find(data.folder, data.train_split), train_transform(recipe.augment), None, seed, data.cache, limit
    )
    validation = CocoDetection(
        CocoFolder.find(data.folder, data.train_split if data.overfit else data.val_split),
        eval_transform(recipe.augment),
        training.classes,
        cache=data.cache,
        limit=limit if data.overfit else None,
    )
    return training, validation


def _check_queries(recipe: Recipe, training: CocoDetection) -> None:
    """Each object needs a query of its own: say so before the run, and not when the picture comes."""
    if isinstance(recipe.model, FasterRcnnConfig):
        return
    most, index = max((len(training.objects(i)), i) for i in range(len(training)))
    if most > recipe.model.queries:
        raise ValueError(
            f"{training.folder.annotations}: image id {training.images[index]['id']} has {most} objects, the model only "
            f"{recipe.model.queries} queries: train with --queries {most} or more"
        )


def pick_device(name: str) -> torch.device:
    """`auto` → the first GPU or the CPU. Raises ValueError for a device that is not there."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device)
    except Exception as error:
        raise ValueError(f"device {name!r} cannot be used here: choose 'auto' or 'cpu'") from error
    return device


def use_bf16(config: TrainConfig, device: torch.device) -> bool:
    """Whether the forward pass runs in bfloat16."""
    if config.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return config.precision == "bf16"


def _open_run(recipe: Recipe, folder: Path, resume: bool) -> dict[str, Any] | None:
    """Make the run's folder, or read the state to go on from."""
    last = folder / "last.pt"
    if resume:
        if not last.exists():
            raise ValueError(f"nothing to resume: {last} does not exist; start without --resume")
        state = read(last)
        if state["about"]["recipe"] != recipe_to_dict(recipe):
            raise ValueError(
                f"{last} was made with another recipe: resume with the options of {folder / 'recipe.json'}"
            )
        return state
    if (folder / "log.jsonl").exists():
        raise ValueError(f"{folder} already holds a run: go on with --resume, or give another --out")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.json").write_text(json.dumps(recipe_to_dict(recipe), indent=2) + "\n", encoding="utf-8")
    return None


def _save_state(
    folder: Path,
    model: Model,
    optimizers: list[torch.optim.Optimizer],
    recipe: Recipe,
    classes: list[str],
    step: int,
    best: float,
    seconds: float,
) -> None:
    about = {"recipe": recipe_to_dict(recipe), "step": step}
    content = model_content(model, classes, about)
    cuda = torch.cuda.get_rng_state() if torch.cuda.is_available() else torch.zeros(0, dtype=torch.uint8)
    write_atomically(
        {
            **content, "optimizers": [optimizer.state_dict() for optimizer in optimizers], "step": step, "best": best,
            "seconds": seconds, "rng": torch.get_rng_state(), "cuda_rng": cuda,
        },
        folder / "last.pt",
    )  # fmt: skip


def _circumstances(
    recipe: Recipe,
    model: Model,
    device: torch.device,
    training: CocoDetection,
    validation: CocoDetection,
    steps: int,
) -> dict[str, Any]:
    """What a reader of the log must know to repeat the run."""
    chip = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU"
    return {
        "recipe": recipe_to_dict(recipe),
        "classes": training.classes,
        "pictures": len(training),
        "validation_pictures": len(validation),
        "steps_in_all": steps,
        "parameters": sum(p.numel() for p in model.parameters()),
        "device": f"{chip}, {torch.get_num_threads()} threads",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
    }
