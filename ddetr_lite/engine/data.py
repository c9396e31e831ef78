"""The data sets of a recipe: read, checked against the model, and decoded beforehand where that is wanted."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ddetr_lite.datasets.coco import CocoDetection, CocoFolder
from ddetr_lite.datasets.loading import Order
from ddetr_lite.datasets.picture_cache import PictureCache
from ddetr_lite.datasets.transforms import eval_transform, resized_size, train_transform
from ddetr_lite.engine.distributed import World
from ddetr_lite.engine.evaluate import area_ranges
from ddetr_lite.engine.recipes import DataConfig, Recipe, TrainConfig
from ddetr_lite.models.faster_rcnn import FasterRcnnConfig


class Part(NamedTuple):
    """Which pictures of a folder: of a split the first `limit`, all where it is None; of these the first `few` that have an
    object, all where it is 0.
    """

    split: str
    limit: int | None = None
    few: int = 0

    def of(self, whole: CocoDetection) -> CocoDetection:
        """These few of a split that was read with `limit`."""
        return whole.with_objects(self.few) if self.few else whole


def parts(data: Mapping[str, Any]) -> tuple[Part, Part]:
    """What a run with these fields of `DataConfig` trains on, and what it is evaluated on: under `overfit` the same.

    Of an older version too: there `overfit` was a switch, for all pictures of `limit`.
    """
    values = {**vars(DataConfig()), **data}
    few = values["overfit"]
    training = Part(values["train_split"], values["limit"] or None, 0 if few is True else few)
    return training, training if few else Part(values["val_split"])


def datasets(recipe: Recipe, place: World, progress: bool = False) -> tuple[CocoDetection, CocoDetection]:
    """The training set, augmented, and the validation set with the same classes.

    Under `overfit` both are the same few pictures, as they are. Raises ValueError where model and data do not fit.
    """
    data, few = recipe.data, recipe.data.overfit
    trained, evaluated = parts(vars(data))
    as_it_is = eval_transform(recipe.augment)
    training = CocoDetection(
        CocoFolder.find(data.folder, trained.split),
        as_it_is if few else train_transform(recipe.augment),
        seed=recipe.train.seed,
        limit=trained.limit,
    )
    validation = CocoDetection(
        CocoFolder.find(data.folder, evaluated.split), as_it_is, training.classes, limit=evaluated.limit
    )
    for part, remedy in ((training, "train on others"), (validation, "validate on others, or AP cannot be measured")):
        if not any(part.objects(index) for index in range(len(part))):
            among = f"the {len(part)} pictures" if len(part) else "the file"
            raise ValueError(f"{part.folder.annotations}: {among} hold no object (crowds do not count): {remedy}")
    training, validation = trained.of(training), evaluated.of(validation)
    _check_queries(recipe, training)
    for part in (training, validation):
        part.check_files()  # a validation picture that is missing would be noticed an epoch later
    area_ranges(validation, data.size_bands)  # raises now what an evaluation would raise an epoch later
    if data.cache != "none":
        as_evaluated = (recipe.augment.eval_short_side,)
        for part, short_sides in (
            (training, as_evaluated if few else recipe.augment.short_sides),
            (validation, as_evaluated),
        ):
            _decode(part, recipe, short_sides, place, progress)
    return training, validation


def order_of(config: TrainConfig, training: CocoDetection) -> Order:
    """Which pictures each step of a run sees."""
    groups = training.orientations() if config.group_orientations else None
    return Order(len(training), config.batch, config.seed, groups, config.one_size)


def _check_queries(recipe: Recipe, training: CocoDetection) -> None:
    """Each object needs a query of its own: say so before the run, and not when the picture comes."""
    if isinstance(recipe.model, FasterRcnnConfig):
        return
    most, index = max((len(training.objects(i)), i) for i in range(len(training)))
    if most > recipe.model.queries:
        remedy = f"train with --queries {most} or more"
        if recipe.train.start_from and not getattr(recipe.model, "two_stage", False):  # as many as the checkpoint has
            remedy = f"its queries are weights, so either leave out such pictures, or {remedy} and without --start-from"
        raise ValueError(
            f"{training.folder.annotations}: image id {training.images[index]['id']} has {most} objects, the model only "
            f"{recipe.model.queries} queries: {remedy}"
        )


def _decode(part: CocoDetection, recipe: Recipe, short_sides: Sequence[int], place: World, progress: bool) -> None:
    """Keep the pictures of a data set, which are asked for with these short sides.

    On the disk the first process writes the file, and the others find it.
    """
    folder = Path(recipe.data.folder).expanduser() / ".cache" if recipe.data.cache == "disk" else None
    files = [part.file_of(i) for i in range(len(part))]

    def keep() -> None:
        largest = recipe.augment.max_side
        part.pictures = PictureCache(files, lambda size: size_to_keep(size, short_sides, largest), folder, progress)

    if folder is None or place.main:
        keep()
    place.wait()
    if part.pictures is None:
        keep()


def size_to_keep(size: tuple[int, int], short_sides: Sequence[int], max_side: int) -> tuple[int, int]:
    """The (height, width) in which a picture of this size is kept: no larger than the largest that is asked for.

    short_sides: those that the data set's transform resizes to; none, or 0: it takes pictures as they are. In evaluation there
    is one, and a picture is resized once, to the very bits that come without a cache. In training most pictures are resized
    a second time, from what is kept: their sizes are those without a cache, their pixels are a little softer.
    """
    if not short_sides or 0 in short_sides:
        return size
    largest = resized_size(*size, max(short_sides), max_side)
    return largest if largest[0] < size[0] else size
