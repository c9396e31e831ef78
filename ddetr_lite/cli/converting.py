"""`ddetr-lite convert`."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from ddetr_lite.cli.parsing import Mistake, at_least, parse

if TYPE_CHECKING:
    from ddetr_lite.models.presets import ModelConfig


@dataclass(frozen=True)
class ConvertOptions:
    """Weights to and from other projects; the endings of the names say what is what.

    .pt, or a run's folder, is a checkpoint of this package; .pth or .safetensors the authors' official layout; another folder
    Hugging Face's (config.json and model.safetensors). Official COCO models have a logit for each of 91 category ids: on the
    way in they get the 80 real classes, on the way out the 91 ids again.
    """

    source: Positional[Path]
    target: Positional[Path]
    heads: int | None = None
    """Official files do not tell the number of attention heads: 8 unless you say so."""
    queries: int | None = None
    """Nor a two-stage model's number of queries: 300."""
    dilation: bool | None = None
    """Nor DC5: taken from "dc5" in the file's name."""
    coco: bool = True
    """Whether 91 logits are COCO's category ids, as in the official models; --no-coco keeps them all, for classes of your own.
    Hugging Face's files name their classes, and need no option."""


def convert(words: list[str]) -> None:
    """Bring weights in from the authors' or Hugging Face's files, or out to them."""
    options = parse(ConvertOptions, words, "ddetr-lite convert")
    from ddetr_lite import convert as converting
    from ddetr_lite.engine.checkpoint import load_model, save_model
    from ddetr_lite.models.faster_rcnn import FasterRcnn

    source, target = options.source, options.target
    at_least(options, heads=1, queries=1)
    if target.exists():
        raise Mistake(f"{target} exists already: give another name")
    if source.suffix == ".pt" or (source / "best.pt").is_file():  # a checkpoint, or a run
        loaded = load_model(source)
        model, names, about = loaded.model, loaded.classes, loaded.about
    else:
        if source.is_dir():
            found = converting.read_hugging_face(source)
        else:
            found = converting.read_official(
                source, heads=options.heads, dilation=options.dilation, queries=options.queries
            )
        model, names = converting.with_class_names(found, options.coco)
        if len(names) < found.classes:
            kept = f"{len(names)} of which are classes; --no-coco keeps them all."
            print(f"The {found.classes} logits are taken for COCO's ids, {kept}")
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
    if target.suffix in (".pth", ".safetensors") and (said := _way_back(model.config)):
        print(said)


def _way_back(config: "ModelConfig") -> str:
    """What has to be said to read an official file, which does not tell all of its model."""
    from ddetr_lite.convert.infer import RESNETS
    from ddetr_lite.convert.official import USUAL_HEADS, USUAL_QUERIES
    from ddetr_lite.models.faster_rcnn import FasterRcnnConfig

    assert not isinstance(config, FasterRcnnConfig)  # `convert` has refused it
    if config.backbone.name not in RESNETS:
        return (
            f"The authors have ResNets only, and this model has {config.backbone.name}: `convert` cannot read the file back, "
            "ddetr_lite.convert.from_official(state, model) can."
        )
    options = [f"--heads {config.heads}"] if config.heads != USUAL_HEADS else []
    if getattr(config, "two_stage", False) and config.queries != USUAL_QUERIES:
        options.append(f"--queries {config.queries}")
    if config.backbone.dilation:
        options.append("--dilation")
    return f"The file does not say all: to read it back, give {' '.join(options)}." if options else ""
