"""Checkpoints: plain tensors, numbers and strings, written so that a crash never leaves half a file.

Two kinds: a *model* (weights, configuration, class names, what it was trained on) for using it, and a *training state*
(that and optimizer, position, random generators) for going on exactly where a run stopped.
"""

from dataclasses import dataclass
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor

from ddetr_lite.datasets.transforms import AugmentConfig
from ddetr_lite.models.presets import Model, build, config_from_dict, config_to_dict, dataclass_from_dict
from ddetr_lite.writing import replacing

FORMAT = "ddetr_lite checkpoint 1"


@dataclass(frozen=True)
class LoadedModel:
    """A model from a file: in evaluation mode, on the CPU; the names of its classes; and what else the file says."""

    model: Model
    classes: list[str]
    about: dict[str, Any]


def augment_of(loaded: LoadedModel) -> AugmentConfig:
    """How the model's validation pictures were resized, as its checkpoint says; the paper's rule where it says nothing."""
    config: AugmentConfig = dataclass_from_dict(AugmentConfig, _augment_in(loaded.about))
    return config


def sizes_of(about: dict[str, Any]) -> dict[str, Any]:
    """How a checkpoint's pictures were resized: fields of `AugmentConfig`; {} where they were not, or it does not say.

    about: what the checkpoint says of itself. At another size a detector would have to learn much anew.
    """
    augment = _augment_in(about)
    if not augment.get("eval_short_side"):
        return {}
    sizes: dict[str, Any] = {
        name: augment[name] for name in ("short_sides", "eval_short_side", "max_side") if name in augment
    }
    if "short_sides" in sizes:
        sizes["short_sides"] = tuple(sizes["short_sides"])
    return sizes


def _augment_in(about: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = about.get("recipe", {}).get("augment", {})
    return found


def write_atomically(content: Any, path: Path) -> None:
    """`torch.save` to a neighbour of `path`, flushed to the disk, and moved there in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as file:
        torch.save(content, file)


def model_content(model: Model, classes: list[str], about: dict[str, Any]) -> dict[str, Any]:
    """What a model checkpoint holds."""
    return {
        "format": FORMAT,
        "config": config_to_dict(model.config),
        "classes": list(classes),
        "about": about,
        "model": model.state_dict(),
    }


def save_model(path: str | Path, model: Model, classes: list[str], about: dict[str, Any], half: bool = False) -> None:
    """Write a model checkpoint. half: weights in float16, half the size; they are float32 again once loaded.

    about: what it is to say of itself; for a model that was loaded `{**loaded.about, ...}`. about["recipe"]["augment"], fields
    of `AugmentConfig`, decides how pictures are resized for it (`augment_of`): without it to 800 pixels, as in the paper.
    about["threshold"] is the score from which on `predict` shows what it finds.
    """
    content = model_content(model, classes, about)
    if half:
        content["model"] = {k: v.half() if v.is_floating_point() else v for k, v in content["model"].items()}
    write_atomically(content, Path(path))


def read(path: str | Path) -> dict[str, Any]:
    """The content of a checkpoint of either kind; of a run's folder, that of its best.pt.

    Raises ValueError naming the file, FileNotFoundError where there is none.
    """
    path = Path(path).expanduser()
    if path.is_dir():
        run, path = path, path / "best.pt"
        if not path.exists() and (run / "last.pt").exists():
            raise FileNotFoundError(
                f"{run} has no best.pt, since the run has not been evaluated yet: go on with it (--resume), or name its last.pt"
            )
        if not path.exists():
            raise FileNotFoundError(f"{run} is no run: there is no best.pt in it; name a checkpoint, or a run's folder")
    if not path.is_file():
        raise FileNotFoundError(f"checkpoint {path} does not exist")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(f"{path} is no checkpoint, or is damaged ({type(error).__name__})") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        found = content.get("format", "none") if isinstance(content, dict) else type(content).__name__
        raise ValueError(
            f"{path} is not a checkpoint of this package (format {found!r}, expected {FORMAT!r}). The authors' files are read "
            "by `ddetr-lite convert` once they end in .pth, Hugging Face's as the folder that they lie in"
        )
    return content


def load_model(path: str | Path) -> LoadedModel:
    """The model of a checkpoint of either kind, ready for use.

    Raises ValueError, naming file and field, where one is missing, is of another version, or its tensors do not fit.
    """
    content = read(path)
    if missing := [name for name in ("config", "classes", "about", "model") if name not in content]:
        raise ValueError(f"{path} lacks {missing[0]!r}, which each checkpoint has: write it with `save_model`")
    for name, kind in (("classes", (list, tuple)), ("model", dict)):
        if not isinstance(content[name], kind):
            raise ValueError(f"{path}: {name!r} is a {type(content[name]).__name__}: write it with `save_model`")
    try:
        model = build(config_from_dict(content["config"]), len(content["classes"]), load_backbone=False)
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path}: 'config' does not fit this version: {error}; load it with the version that wrote it, or train anew"
        ) from error
    state: dict[str, Tensor] = {k: v.float() if v.is_floating_point() else v for k, v in content["model"].items()}
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        said = shorten(str(error), 400, placeholder=" ...")  # torch names them all
        raise ValueError(f"{path}: the tensors do not fit the configuration in the same file: {said}") from error
    return LoadedModel(model.eval(), list(content["classes"]), dict(content["about"]))
