"""From a data set to the batches of a run: in which order, by which process, and in how many tensors.

Order and augmentation are pure functions of (seed, epoch, index): a run that was stopped goes on with the very next batch,
whatever the number of loading processes.
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler

from ddetr_lite.batching import RawBatch
from ddetr_lite.datasets.coco import CocoDetection, Key
from ddetr_lite.datasets.fields import size_of


class EpochSampler(Sampler[list[Key]]):
    """Batches of keys in an order that is a pure function of (seed, epoch).

    Starts at batch `start` of the epoch. The last, smaller batch is left out, unless it is the only one.
    groups: a number for each picture (length,); pictures of one group share a batch, but for the rest of each group.
    one_size: each batch draws once how large its pictures become (`transforms.SizeDraw`).
    """

    def __init__(
        self,
        length: int,
        batch: int,
        seed: int,
        epoch: int,
        start: int = 0,
        groups: Sequence[int] | None = None,
        one_size: bool = False,
    ):
        random = np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch))))
        order = random.permutation(length)
        count = max(1, length // batch)
        if groups is not None:
            group_of = np.asarray(groups)[order]
            members = [order[group_of == group] for group in np.unique(group_of)]
            whole = [m[: len(m) // batch * batch] for m in members]
            order = np.concatenate([*whole, *(m[len(w) :] for m, w in zip(members, whole, strict=True))])
        batches: list[list[Key]] = [[(epoch, int(i)) for i in order[b * batch : (b + 1) * batch]] for b in range(count)]
        if groups is not None:
            batches = [batches[i] for i in random.permutation(count)]
        if one_size:
            draws = random.random(count).tolist()
            batches = [[(*key[:2], draw) for key in own] for own, draw in zip(batches, draws, strict=True)]
        self.batches = batches[start:]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[Key]]:
        return iter(self.batches)


@dataclass(frozen=True)
class Order:
    """Which pictures the steps of a run see; the same for every process.

    length: pictures in the data set; batch: pictures in a step, of all processes together.
    """

    length: int
    batch: int
    seed: int = 0
    groups: Sequence[int] | None = None
    one_size: bool = False

    def epoch(self, epoch: int, start: int = 0) -> EpochSampler:
        """The batches of an epoch, from `start` on."""
        return EpochSampler(
            self.length, self.batch, self.seed, epoch, start, groups=self.groups, one_size=self.one_size
        )

    @property
    def steps_per_epoch(self) -> int:
        """Steps in each epoch."""
        return max(1, self.length // self.batch)


class RunSampler(Sampler[list[Key]]):
    """One process's share of every batch of a run, from step `start` to the end of epoch `epochs`.

    A step's batch is cut into `size` · `pieces` parts of equal length; process `rank` of `size` gets `pieces` of them, one
    after another. So a step is the same whatever the number of processes, and of pieces that a GPU takes it in.
    Raises ValueError where a batch cannot be cut so.
    """

    def __init__(self, order: Order, epochs: int, start: int = 0, rank: int = 0, size: int = 1, pieces: int = 1):
        batch = min(order.batch, order.length)
        if batch % (size * pieces):
            parts = f"{size} processes × {pieces} pieces (--accumulate)"
            few = f" (there are no more, --batch is {order.batch})" if batch < order.batch else ""
            remedy = f"make --batch a multiple of {size * pieces}" if not few else "take fewer pieces, or more pictures"
            raise ValueError(f"a batch of {batch} pictures{few} cannot be cut into {parts}: {remedy}")
        self.order, self.epochs, self.start = order, epochs, start
        self.rank, self.pieces, self.part = rank, pieces, batch // (size * pieces)

    def __len__(self) -> int:
        return (self.epochs * self.order.steps_per_epoch - self.start) * self.pieces

    def __iter__(self) -> Iterator[list[Key]]:
        first, skip = divmod(self.start, self.order.steps_per_epoch)
        for epoch in range(first, self.epochs):
            for batch in self.order.epoch(epoch, skip if epoch == first else 0):
                for piece in range(self.rank * self.pieces, (self.rank + 1) * self.pieces):
                    yield batch[piece * self.part : (piece + 1) * self.part]


@dataclass
class Batch:
    """B pictures and their objects in five tensors: between processes every tensor costs its own message.

    images: B padded pictures; boxes: (ΣT, 4), corners in pixels of the image; labels: (ΣT,); counts: T of each picture;
    image_ids: (B,); original_sizes: (B, 2), heights and widths on the disk.
    """

    images: RawBatch
    boxes: Tensor
    labels: Tensor
    counts: list[int]
    image_ids: Tensor
    original_sizes: Tensor

    @classmethod
    def of(cls, samples: list[tuple[Tensor, dict[str, Tensor]]]) -> "Batch":
        """Collate what `CocoDetection` gives."""
        images, targets = zip(*samples, strict=True)
        return cls(
            RawBatch.of(images),
            torch.cat([t["boxes"] for t in targets]),
            torch.cat([t["labels"] for t in targets]),
            [len(t["labels"]) for t in targets],
            torch.stack([t["image_id"] for t in targets]),
            torch.stack([t["original_size"] for t in targets]),
        )

    def targets(self) -> list[dict[str, Tensor]]:
        """As a detector takes them: "boxes", "labels", "image_id", "original_size" for each picture."""
        columns = (self.boxes.split(self.counts), self.labels.split(self.counts), self.image_ids, self.original_sizes)
        names = ("boxes", "labels", "image_id", "original_size")
        return [dict(zip(names, values, strict=True)) for values in zip(*columns, strict=True)]

    def to(self, device: torch.device) -> "Batch":
        """The same batch with its pictures on a device. Objects stay where they are looked at."""
        return replace(self, images=RawBatch(self.images.pixels.to(device), self.images.sizes))

    def pin_memory(self) -> "Batch":
        """For the DataLoader: pictures in memory from which the GPU copies by itself. Objects stay where they are looked at."""
        self.images = RawBatch(self.images.pixels.pin_memory(), self.images.sizes)
        return self


def evaluation_batches(dataset: CocoDetection, batch: int, padded: bool = False) -> list[list[Key]]:
    """Batches of pictures whose files have one size: nothing in them is padding. padded: of all, in the data set's order.

    Padding changes what a detector says a little (at a border later convolutions see what earlier ones made of it, where else
    they see zeros), so with it AP would depend on which pictures share a batch. A picture whose record names no size is alone.
    """
    groups: dict[Any, list[int]] = {}
    for index, image in enumerate(dataset.images):
        groups.setdefault(0 if padded else size_of(image) or index, []).append(index)
    return [
        [(0, index) for index in members[start : start + batch]]
        for members in groups.values()
        for start in range(0, len(members), batch)
    ]


PREFETCH = 4
# Loading processes of Linux are forks, with every version of Python: they are there at once, share the annotations in memory,
# and end when a run is killed. From Python 3.14 on a server would start them, whose children import torch anew, hold a copy
# of the annotations each, and outlive a killed run, since it is their parent and lives as long as they do.
START = "fork" if sys.platform == "linux" else None


def loader(dataset: CocoDetection, sampler: Any, workers: int, device: torch.device) -> DataLoader[Any]:
    """Batches of a sampler, loaded by `workers` processes (0: this one), `PREFETCH` each, while the device works on others."""
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=workers,
        multiprocessing_context=START if workers else None,
        collate_fn=Batch.of,
        pin_memory=device.type == "cuda",
        prefetch_factor=PREFETCH if workers else None,
        generator=torch.Generator(),  # else the loader would draw from the global generator, which belongs to the model
    )
