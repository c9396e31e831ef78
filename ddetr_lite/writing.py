"""Files that are there as a whole or not at all, whatever happens meanwhile; folders in which only one process writes."""

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write to, beside `path` and hidden; flushed to the disk and moved there in one step, or gone."""
    beside = path.with_name(f".{path.name}-{secrets.token_hex(4)}.unfinished")
    try:
        with beside.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file in one step: it is there as a whole, or as it was before."""
    with replacing(path) as file:
        file.write(content)


def write_json(path: Path, content: Any, indent: int | None = None) -> None:
    """`write_bytes` of what JSON can hold, with a new line at its end."""
    write_bytes(path, (json.dumps(content, indent=indent) + "\n").encode())


def sweep(folder: Path) -> None:
    """Remove what a process that was killed outright left of `replacing`."""
    for leftover in folder.glob(".*.unfinished"):
        leftover.unlink(missing_ok=True)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Keep other processes out of `folder`, which is made if need be: two would train the same, into the same logs.

    A folder that was made here, and in which nothing was written, is gone afterwards. The system gives the lock back when a
    process ends, however it ends. Raises ValueError where another one has it.
    """
    made = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout as error:
        raise ValueError(f"{folder} is being trained in by another process: wait for it, or end it") from error
    except NotImplementedError:  # a file system without locks is no reason not to train
        yield
        return
    try:
        sweep(folder)
        yield
    finally:
        lock.release()
        if made and all(path.name == ".lock" for path in folder.iterdir()):
            shutil.rmtree(folder, ignore_errors=True)
