"""Files that are there as a whole or not at all, whatever happens while they are written."""

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


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
