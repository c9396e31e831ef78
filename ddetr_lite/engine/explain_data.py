"""What a run's data say about a low AP: `datasets.check`, objects and queries, and the weight of "no object"."""

from collections import Counter
from dataclasses import dataclass, replace

from ddetr_lite.datasets.check import FolderCheck, check_folder
from ddetr_lite.datasets.check_annotations import Split
from ddetr_lite.datasets.check_pictures import check_leaks, check_pictures, look_at_all
from ddetr_lite.datasets.findings import KINDS, grouped
from ddetr_lite.engine.explain_evidence import Evidence, Observation
from ddetr_lite.models.faster_rcnn import FasterRcnnConfig
from ddetr_lite.models.presets import SetModelConfig

OFTEN = 0.05  # a warning about more than this share of the records is worth a look
LOPSIDED = (
    3.0,
    5.0,
)  # weights of all "no object" queries over the objects': suspicious, and a cause. DETR has about 1.4


@dataclass(frozen=True)
class Objects:
    """Objects in a picture, crowds left out."""

    mean: float
    most: int
    where: str


def check_data(evidence: Evidence) -> list[Observation]:
    """All that `ddetr-lite data check` finds in the annotations, and in the first pictures of each split."""
    if evidence.folder is None or not evidence.folder.is_dir() or evidence.recipe is None:
        return [Observation("data", "skipped", "there is no data to look at")]
    data = evidence.recipe.data
    splits = (data.train_split,) if data.overfit else (data.train_split, data.val_split)
    checked = check_folder(evidence.folder, splits, pictures=False)
    some = [replace(split, images=split.images[: evidence.pictures]) for split in checked.splits]
    seen = look_at_all(some)
    findings = [
        *checked.findings,
        *(f for split in some for f in check_pictures(split, seen)),
        *check_leaks(some, seen),
    ]
    result = []
    records = max(1, sum(len(s.annotations) + len(s.images) for s in checked.splits))
    rare: list[str] = []
    for kind, members in grouped(findings).items():
        about = KINDS[kind]
        text = f"{about.title} ({len(members)}): {members[0].where}: {members[0].message}"
        if about.severity == "error":
            result.append(Observation("data", "cause", text, about.remedy))
        elif about.severity == "warning" and len(members) > OFTEN * records:
            result.append(Observation("data", "suspicious", text, about.remedy))
        elif about.severity == "warning":
            rare.append(f"{kind} ({len(members)})")
    if not result:
        numbers = ", ".join(f"{s.name} {len(s.images)} pictures, {len(s.annotations)} objects" for s in checked.splits)
        text = f"{numbers}: no error" + (f"; few warnings: {', '.join(rare)}" if rare else "")
        result.append(Observation("data", "OK", text))
    return [*result, *_queries(evidence, checked), *_no_object(evidence, checked)]


def _objects(split: Split) -> Objects:
    counts = Counter(repr(a.get("image_id")) for a in split.objects())
    image, most = counts.most_common(1)[0] if counts else ("none", 0)
    return Objects(counts.total() / max(1, len(split.images)), most, f"image id {image} of {split.name}")


def _set_config(evidence: Evidence) -> SetModelConfig | None:
    config = evidence.recipe.model if evidence.recipe else None
    return None if config is None or isinstance(config, FasterRcnnConfig) else config


def _queries(evidence: Evidence, checked: FolderCheck) -> list[Observation]:
    """Each object needs a query of its own."""
    config, name = _set_config(evidence), "number of queries"
    if config is None or not checked.splits:
        return []
    fullest = max((_objects(split) for split in checked.splits), key=lambda o: o.most)
    text = f"{config.queries} queries, at most {fullest.most} objects in a picture ({fullest.where})"
    if fullest.most > config.queries:
        return [Observation(name, "cause", text, f"--queries {2 * fullest.most}, in a new run")]
    if fullest.most > 0.8 * config.queries:
        return [Observation(name, "suspicious", f"{text}: hardly any to spare", f"--queries {2 * fullest.most}")]
    return [Observation(name, "OK", text)]


def _no_object(evidence: Evidence, checked: FolderCheck) -> list[Observation]:
    """Many queries without an object, each weighing as much as one with: then saying nothing pays."""
    config, name = _set_config(evidence), "weight of no object"
    if config is None or config.loss.kind != "softmax" or not checked.splits:
        return []
    mean, weight = max(_objects(checked.splits[0]).mean, 0.1), config.loss.no_object
    ratio = (config.queries - mean) * weight / mean
    text = f"{weight:g}: the {config.queries} queries without an object weigh {ratio:.1f} × the {mean:.1f} objects"
    if ratio < LOPSIDED[0]:
        return [Observation(name, "OK", text)]
    remedy = f"--loss.no-object {min(0.1, mean / config.queries):.2g}, or fewer queries"
    return [Observation(name, "cause" if ratio > LOPSIDED[1] else "suspicious", text, remedy)]
