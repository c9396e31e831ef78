"""All pictures of a data set decoded once, in one array of bytes that every loading process reads.

In memory, or in a file that later runs find again.
"""

import copy
import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional as F
from tqdm import tqdm

from ddetr_lite.datasets.pictures import picture_size, read_picture
from ddetr_lite.memory import free_bytes
from ddetr_lite.progress import hidden

Size = tuple[int, int]


class PictureCache:
    """`cache[i]` is picture i as (3, H, W), uint8: a copy of its own; `on_disk[i]` the (height, width) of its file.

    files: the pictures' paths. target: from a picture's (height, width) on the disk to that in the cache.
    folder: where the file lies that keeps them; None: in memory. A file that is there is only read, so the folder may be
    write-protected, and it is found again where the folder has been moved together with the pictures. ValueError is raised
    for an unreadable picture, naming it, and where memory, disk or write access is lacking.
    """

    def __init__(
        self,
        files: Sequence[Path],
        target: Callable[[Size], Size],
        folder: Path | None = None,
        progress: bool = False,
    ):
        with ThreadPoolExecutor() as threads:
            self.on_disk: list[Size] = list(threads.map(picture_size, files))
            self.sizes = [target(size) for size in self.on_disk]
            *self.starts, self._length = np.cumsum([0, *(3 * h * w for h, w in self.sizes)]).tolist()
            self._bytes, filled = self._place(files, folder)
            if not filled:
                try:
                    work = threads.map(lambda i: self._fill(i, files[i]), range(len(files)))
                    for _ in tqdm(work, "decoding pictures", len(files), disable=hidden(progress), leave=False):
                        pass
                    self._seal()
                except BaseException:  # a broken picture, or Ctrl-C: a file as large as the whole is not left behind
                    threads.shutdown(cancel_futures=True)
                    self._discard()
                    raise

    def _place(self, files: Sequence[Path], folder: Path | None) -> tuple[Tensor, bool]:
        """The array of bytes, and whether an earlier run has filled it."""
        count = self._length
        self._file: Path | None = None
        self._part: Path | None = None
        if folder is None:
            copies = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # each process that torchrun started here has its own
            free = free_bytes()  # None where the system does not say
            if free is not None and count * copies > free:
                raise ValueError(
                    f"the decoded pictures need {count * copies / 1e9:.1f} GB of memory, more than is free: choose --cache "
                    "disk (one copy for all processes) or --cache none"
                )
            return torch.empty(count, dtype=torch.uint8), False  # forked processes see the same pages
        state = [_fingerprint(file, folder.parent, size) for file, size in zip(files, self.sizes)]
        key = hashlib.sha256(json.dumps(state).encode()).hexdigest()[:16]
        self._file = folder / f"{key}.bytes"
        if self._file.exists():
            return self._open(self._file), True
        # Filled under another name, which a run that is killed leaves behind, and two runs do not share.
        self._part = folder / f"{key}.{os.getpid()}.part"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(folder).free
            if count <= free:
                with self._part.open("wb") as file:
                    file.truncate(count)
        except OSError as error:
            raise ValueError(
                f"the decoded pictures cannot be written into {folder} ({error.strerror}): choose --cache memory, or make it "
                "a folder that you may write in"
            ) from error
        if count > free:
            raise ValueError(
                f"the decoded pictures need {count / 1e9:.1f} GB in {folder}, more than is free there: choose --cache "
                "none, or make room"
            )
        return self._open(self._part, writing=True), False

    def _open(self, file: Path, writing: bool = False) -> Tensor:
        """The bytes of a file: nothing is read before it is needed, and all processes see the same pages.

        By NumPy: torch maps a file either for writing, which a write-protected one forbids, or so that each process may change
        its own copy of a page, for which the system sets aside as much memory as the file is long.
        """
        mapped = np.memmap(file, np.uint8, "r+" if writing else "r", shape=(self._length,))
        with warnings.catch_warnings():  # torch has no tensors that cannot be written to; nothing here writes to it
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            return torch.from_numpy(mapped)

    def __getstate__(self) -> dict[str, Any]:
        """For processes that are not forked: they open the file anew."""
        return {**vars(self), **({} if self._file is None else {"_bytes": None})}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        if self._file is not None:
            self._bytes = self._open(self._file)

    def _fill(self, index: int, file: Path) -> None:
        pixels = read_picture(file)
        if tuple(pixels.shape[1:]) != self.sizes[index]:
            pixels = F.resize(pixels, list(self.sizes[index]), antialias=True)
        self._view(index).copy_(pixels)

    def _seal(self) -> None:
        """Only a file that is whole gets its name, so that one that was cut off is never believed."""
        if self._file is not None and self._part is not None:
            self._bytes = torch.empty(0, dtype=torch.uint8)  # some systems rename no file that is open
            with self._part.open("rb+") as file:
                os.fsync(file.fileno())  # all of it is on the disk before it has the name that says so
            self._part.replace(self._file)
            self._bytes = self._open(self._file)

    def _discard(self) -> None:
        if self._part is not None:
            self._bytes = torch.empty(0, dtype=torch.uint8)  # some systems delete no file that is open
            self._part.unlink(missing_ok=True)

    def _view(self, index: int) -> Tensor:
        (height, width), start = self.sizes[index], self.starts[index]
        return self._bytes[start : start + 3 * height * width].view(3, height, width)

    def part(self, kept: Sequence[int]) -> "PictureCache":
        """A cache of the pictures at these positions only. The bytes are the same ones: none is copied."""
        part = copy.copy(self)
        part.on_disk, part.sizes = [self.on_disk[i] for i in kept], [self.sizes[i] for i in kept]
        part.starts = [self.starts[i] for i in kept]
        return part

    def __getitem__(self, index: int) -> Tensor:
        return self._view(index).clone()

    def __len__(self) -> int:
        return len(self.sizes)


def _fingerprint(file: Path, base: Path, size: Size) -> tuple[str, int, int, Size]:
    """What tells a picture that is kept from every other: its path, length and time of change, and the size it is kept in.

    The path is that from the data folder, `base`: it stays the same where the folder is moved, or is mounted elsewhere.
    """
    state = file.stat()
    return Path(os.path.relpath(file, base)).as_posix(), state.st_size, state.st_mtime_ns, size
