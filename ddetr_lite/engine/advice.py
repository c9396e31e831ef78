"""How to train on a data set that one knows a few numbers of: rules of thumb, each with its reason.

They start from the recipe `coco`, which is the papers', and change what fewer, smaller or fuller pictures ask for.
"""

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from ddetr_lite.engine.recipes import Recipe, recipe
from ddetr_lite.engine.scaling import rate_factor
from ddetr_lite.models.deformable_detr import DeformableDetrConfig
from ddetr_lite.models.detr import DetrConfig
from ddetr_lite.models.presets import config_to_dict, row_of

COCO_PICTURES = 118_287  # train2017, which the papers' epochs are meant for
FEW_PICTURES = 10_000  # below this DETR's authors advise to start from a trained detector
STEPS_FROM_DETECTOR = 10_000  # where a trained detector only has to learn new classes
STEPS_DEFORMABLE = 20_000  # from ImageNet's backbone
STEPS_DETR = 300_000  # as DETR's authors say
LARGEST_BATCH = 64
LEAST_STEPS = 100  # in an epoch
LEAST_BATCH = 8  # below it a step is mostly noise
MOST_EPOCHS = 300  # of a trained detector: to see the same pictures more often than that teaches little
HIGHEST_LR = 2.0  # times the recipe's: what was tried here, with four times its batch


@dataclass(frozen=True)
class DataFacts:
    """What the advice depends on."""

    folder: str
    pictures: int
    """To train on."""
    most_objects: int = 0
    """In one picture."""
    short_side: float = 480
    """Median of the pictures' shorter sides, in pixels."""
    aspect: float = 4 / 3
    """Longer side to shorter side, that of the longest pictures but for a twentieth."""
    small_object: float = 32
    """√area in pixels that nine tenths of the objects exceed."""
    upright: float = 0.0
    """Share of pictures that are higher than wide."""
    splits: tuple[str, str] = ("train", "val")
    classes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Start:
    """A checkpoint to fine-tune: what the advice has to know of it."""

    recipe: Recipe
    """`fine_tuning.recipe_for` it."""
    classes: Sequence[str]
    resized: bool
    """Whether its pictures were, so that the recipe has their sizes."""

    @property
    def row(self) -> str:
        """The row of the papers' table that its model is."""
        return row_of(config_to_dict(self.recipe.model))


@dataclass(frozen=True)
class Advice:
    """Options of `ddetr-lite train coco`, and for each subject why."""

    options: dict[str, str]
    reasons: list[tuple[str, str]]

    @property
    def command(self) -> str:
        """Ready for a shell."""
        words = [word for option, value in self.options.items() for word in (f"--{option}", *shlex.split(value))]
        return shlex.join(["ddetr-lite", "train", "coco", *words])


def head_size(row: str, classes: int) -> int:
    """Outputs of the model's class layer: C where each class has a sigmoid, C+1 where a softmax has "no object" as well."""
    return classes + (0 if isinstance(recipe("coco", row).model, DeformableDetrConfig) else 1)


def advise(
    facts: DataFacts, row: str = "deformable-detr", batch: int | None = None, start: Start | None = None
) -> Advice:
    """The options and the reasons for a row of the papers' table, or for fine-tuning a checkpoint, whose model it is then.

    batch: as many pictures in a step, None: as advised.
    """
    if facts.pictures < 1:
        raise ValueError(f"pictures={facts.pictures}: there is nothing to train on")
    if batch is not None and batch < 1:
        raise ValueError(f"batch={batch} must be at least 1")
    plain = recipe("coco", start.row if start else row)
    base, usual = start.recipe if start else plain, plain.augment.eval_short_side
    few = start is not None or (facts.pictures < FEW_PICTURES and row != "faster-rcnn")
    options = {"folder": shlex.quote(facts.folder)}
    reasons: list[tuple[str, str]] = []
    train_split, val_split = facts.splits
    if facts.splits != ("train", "val"):
        options |= {"train-split": shlex.quote(train_split), "val-split": shlex.quote(val_split)}
    if start is None:
        options = {"model": row, **options}
    if few:
        options["start-from"] = shlex.quote(base.train.start_from) if start else "FILE.pt"
        reasons.append(("start", _why_start(facts, start)))

    side, sides = (base.augment.eval_short_side, {}) if start and start.resized else _sides(base, facts)
    options |= sides
    size = batch or _batch(facts, base, usual / side)
    options["batch"] = str(size)
    why = "as you asked" if batch is not None else _why_batch(facts, base, size, side, usual)
    reasons.append(("batch", f"{size} picture{'' if size == 1 else 's'} in a step: {why}"))

    lr, why = _learning_rate(base, size, few)
    options["lr"] = _plain(lr)
    reasons.append(("lr", f"{_plain(lr)}: {why}"))

    schedule, (epochs, *lines) = _schedule(base, facts.pictures, size, few)
    options |= {name: str(value) for name, value in schedule.items()}
    reasons.append(epochs)
    if few and start is None:
        reasons.append(("without FILE.pt", _without_start(facts, base, size)))
    reasons += lines
    extra, lines = _objects(base, facts, side, start is not None)
    options |= extra
    reasons += lines
    largest = base.augment.max_side * side // base.augment.eval_short_side
    reasons.append(("sides", f"evaluated at {side} px, at most {largest}: {_why_sides(base, facts, side, start)}"))
    if size > 1 and 0.1 <= facts.upright <= 0.9:
        options["group-orientations"] = ""
        share = f"{facts.upright:.0%} of the pictures are upright"
        reasons.append(("orientations", f"grouped: {share}; wide and upright ones in a batch are half padding"))
    gate = "the same with --overfit 8 --epochs 300 --evaluate-every 50 must come near AP 1; if not, look at the data"
    reasons.append(("first of all", gate))
    return Advice(options, reasons)


def _known(facts: DataFacts, start: Start) -> str:
    """Which of the data set's classes a checkpoint has learned."""
    names = [name for name in facts.classes if name in start.classes]
    if len(names) == len(facts.classes):
        return f"it knows all your {len(names)} classes by name"
    some = f" ({', '.join(names[:6])}{' ...' if len(names) > 6 else ''})" if names else ""
    return (
        f"it knows {len(names)} of your {len(facts.classes)} classes by name{some}; the heads of others are made anew"
    )


def _why_start(facts: DataFacts, start: Start | None) -> str:
    if start is not None:
        return f"from {start.recipe.train.start_from}, {start.row}: {_known(facts, start)}"
    why = (
        f"{facts.pictures} pictures are fewer than the {FEW_PICTURES:,} below which DETR's authors advise to fine-tune"
    )
    asked = "this check with --start-from and any checkpoint makes the command for it"
    return f"from a trained detector: {why}; FILE.pt: any checkpoint of this model; {asked}"


def _without_start(facts: DataFacts, base: Recipe, batch: int) -> str:
    """What to change where there is no trained detector to start from."""
    schedule, _ = _schedule(base, facts.pictures, batch, few=False)
    rate, _ = _learning_rate(base, batch, few=False)
    options = f"--epochs {schedule['epochs']} --drop-epoch {schedule['drop-epoch']} --lr {_plain(rate)}"
    return f"{options}: from ImageNet's backbone alone it takes longer"


def _sides(base: Recipe, facts: DataFacts) -> tuple[int, dict[str, str]]:
    """The shorter side for evaluation, and the options that make it so."""
    usual = base.augment.eval_short_side
    side = min(usual, max(64, round(facts.short_side * usual / 480 / 32) * 32))
    if side == usual:
        return side, {}
    sides = sorted({round(s * side / usual / 8) * 8 for s in base.augment.short_sides})
    largest = base.augment.max_side * side // usual
    return side, {
        "short-sides": " ".join(map(str, sides)),
        "eval-short-side": str(side),
        "max-side": str(largest),
    }


def _why_sides(base: Recipe, facts: DataFacts, side: int, start: Start | None) -> str:
    usual = base.augment.eval_short_side
    if start and start.resized:
        return (
            f"as its pictures were; at another size it would have much to learn anew; yours have {facts.short_side:.0f}"
        )
    why = f"the papers enlarge COCO's 480 px to {usual}, and yours have {facts.short_side:.0f}"
    if side == usual and facts.short_side >= usual:
        why = f"as in the papers; yours have {facts.short_side:.0f}"
    reach = base.augment.max_side / usual
    if facts.aspect > 1.05 * reach:
        got = reach * side / facts.aspect
        why += f"; pictures of {facts.aspect:.1f} : 1 meet the limit first, and get a shorter side of {got:.0f}"
    return why


def _batch(facts: DataFacts, base: Recipe, smaller: float) -> int:
    """A power of two that fills about the memory that the recipe's batch does, and leaves some steps in an epoch; no more than
    there are pictures.

    smaller: the recipe's side, divided by that of the pictures.
    """
    fitting = base.train.batch * smaller**2
    most = min(fitting, LARGEST_BATCH, max(LEAST_BATCH, facts.pictures // LEAST_STEPS))
    return min(2 ** int(math.log2(most)), facts.pictures)


def _why_batch(facts: DataFacts, base: Recipe, size: int, side: int, usual: int) -> str:
    """side: of the pictures, in pixels; usual: the recipe's."""
    own = base.train.batch
    if side != usual and size > own:
        smaller = f"{side} px are {usual} px / {usual / side:.2g}"
        return f"the recipe has {own} at {usual} px; {smaller}, so that more fit into memory"
    fewer = f"; of {facts.pictures:,} pictures fewer make more steps in an epoch" if size < own else ""
    return f"the recipe has {own}{fewer}; --accumulate takes a step in pieces where memory does not allow as many"


def _learning_rate(base: Recipe, batch: int, few: bool) -> tuple[float, str]:
    factor = rate_factor(batch, base.train.batch)
    scaled = f"√({batch}/{base.train.batch})"
    if factor > HIGHEST_LR:
        factor, scaled = (
            HIGHEST_LR,
            f"{HIGHEST_LR:g}, where √({batch}/{base.train.batch}) would be more than was ever tried here",
        )
    why = f"the recipe's {_plain(base.train.lr)} for {base.train.batch} pictures × {scaled} (AdamW: root of the batch)"
    if few:
        factor, why = factor / 2, f"{why}, half of it because a trained detector should not be shaken up"
    return base.train.lr * factor, why


def _schedule(base: Recipe, pictures: int, batch: int, few: bool) -> tuple[dict[str, int], list[tuple[str, str]]]:
    dense = isinstance(base.model, DetrConfig)
    usual, per_epoch = base.train.epochs, max(1, pictures // batch)
    least = STEPS_FROM_DETECTOR if few else STEPS_DETR if dense else STEPS_DEFORMABLE
    passes = usual // 4 if few else math.ceil(usual * min(1, COCO_PICTURES / pictures))
    epochs = max(passes, math.ceil(least / per_epoch))
    if few:
        epochs = min(epochs, MOST_EPOCHS)
    steps = epochs * per_epoch
    drop = max(1, round(epochs * base.train.drop_epoch / usual))
    warmup = min(200, steps // 20)
    made = f"{epochs} epochs × {per_epoch:,} steps = {steps:,}"
    if epochs == passes:
        why = (
            "a quarter of the papers' epochs is enough for a trained detector"
            if few
            else f"the papers' {usual} epochs on COCO"
        )
        if pictures > COCO_PICTURES and not few:
            why = f"as many pictures seen as in {usual} epochs of COCO's {COCO_PICTURES:,}"
    elif steps < least:
        why = f"more often than that the same {pictures:,} pictures teach little"
    else:
        source = "as DETR's authors say" if dense and not few else "as a rule of thumb for few pictures"
        why = f"at least {least:,} steps, {source}; the papers' {usual} epochs would be {usual * per_epoch:,}"
    lines = [("epochs", f"{made}: {why}")]
    share = f"{base.train.drop_epoch}/{usual} of the run"
    lines.append(("drop", f"lr × 0.1 from epoch {drop} on: after {share}, as in the papers"))
    lines.append(("warm-up", f"{warmup} steps: AdamW's first steps are its most uncertain, with new heads above all"))
    schedule = {"epochs": epochs, "drop-epoch": drop, "warmup-steps": warmup}
    if epochs >= 40:
        schedule["evaluate-every"] = epochs // 20
    return schedule, lines


def _objects(base: Recipe, facts: DataFacts, side: int, begun: bool) -> tuple[dict[str, str], list[tuple[str, str]]]:
    """Queries, and whether the finest feature map sees the small objects. begun: from a checkpoint's model."""
    options: dict[str, str] = {}
    lines: list[tuple[str, str]] = []
    queries = getattr(base.model, "queries", None)
    if queries is not None:
        if facts.most_objects > queries and begun and not getattr(base.model, "two_stage", False):
            why = "its queries are weights, so leave out the pictures with more, or train without it"
        elif facts.most_objects > queries:
            queries = math.ceil(facts.most_objects * 1.25 / 50) * 50
            options["queries"] = str(queries)
            why = "each needs a query of its own, and some to spare"
            if not begun:
                why += "; those of a checkpoint with another number cannot be kept"
        else:
            why = f"{'the checkpoint' if begun else 'the recipe'}'s are enough"
        lines.append(("queries", f"{queries}: at most {facts.most_objects} objects in a picture; {why}"))
        if facts.most_objects > 100:
            lines.append(
                ("evaluation", "COCO's AP looks at the best 100 detections of a picture only: yours have more")
            )
    stride, seen = finest_stride(base), facts.small_object * side / facts.short_side
    if seen < stride:
        what = f"a tenth of the objects are below {seen:.0f} px then, less than a cell ({stride} px) of the finest feature map"
        remedy = "raise --short-sides and --eval-short-side, or cut pictures into tiles"
        if stride > 8:
            remedy += ", or take deformable-detr"
        lines.append(("small objects", f"{what}: {remedy}"))
    return options, lines


def finest_stride(base: Recipe) -> int:
    """Pixels between the cells of the finest map that the recipe's model looks at."""
    strides = base.model.strides
    return strides[0] // 2 if base.model.backbone.dilation and len(strides) == 1 else strides[0]


def _plain(number: float) -> str:
    """2e-4, not 0.0002 or 2.0e-04."""
    mantissa, exponent = f"{number:.1e}".split("e")
    return f"{mantissa.removesuffix('.0')}e{int(exponent)}"
