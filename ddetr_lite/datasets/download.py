"""Files from a web server: checked, moved into place in one step; many at once, or one large file that goes on.

A file is either there, whole and checked, or not there. The requests themselves are in `web`.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

from tqdm import tqdm

from ddetr_lite.datasets.web import Client, DownloadError, TryAgain, length, validator
from ddetr_lite.progress import hidden
from ddetr_lite.writing import write_bytes

LARGEST = 64 << 20  # bytes of a file that is held in memory until it is checked
PROGRESS = 1 << 20  # bytes that a try must add to a large file for the tries to count anew
IN_A_ROW = 20  # files that fail one after another before the rest is left: the fault is the server's, not theirs


@dataclass(frozen=True)
class Job:
    """One of many files. name: for messages. check: raises ValueError where the bytes are not what they should be."""

    name: str
    url: str
    path: Path
    check: Callable[[bytes], None]


@dataclass(frozen=True)
class Outcome:
    """What became of many files: a line for each that failed, and how many were left when the server seemed at fault."""

    failures: list[str]
    left: int


def check_free_space(folder: Path, needed: int, what: str) -> None:
    """Raises OSError where the disk of `folder`, which need not exist yet, lacks room for `needed` bytes."""
    there = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise OSError(
            f"{what} need {readable(needed)}, and the disk of {folder} has {readable(free)} free: make room, "
            "or choose another --folder"
        )


def readable(size: float) -> str:
    """A number of bytes as people say it: 253 MB."""
    for unit in ("bytes", "kB", "MB"):
        if size < 999.5:
            return f"{size:.0f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"


def fetch(client: Client, job: Job) -> None:
    """A file that fits in memory: checked, then moved into place. Raises DownloadError, or OSError of the disk."""

    def attempt() -> bytes:
        content = bytearray()
        with client.answer(job.url) as response:
            size = length(response)
            for chunk in client.chunks(response, size):
                content += chunk
                if max(len(content), size or 0) > LARGEST:
                    raise DownloadError(f"{job.url}: larger than {readable(LARGEST)}, which no picture is")
        if size is not None and len(content) != size:
            raise TryAgain(f"the connection ended after {len(content)} of {size} bytes")
        try:
            job.check(bytes(content))
        except ValueError as error:
            raise TryAgain(str(error)) from error
        return bytes(content)

    write_bytes(job.path, client.persist(job.url, attempt))


def fetch_many(client: Client, jobs: Sequence[Job], connections: int, progress: bool = True) -> Outcome:
    """Fetch files in parallel, but for those already there that pass their check. Their folders must exist.

    A file that does not come leaves the others alone; an error of the disk, or Ctrl-C, ends all. In no case is a file
    there in part. The client is stopped afterwards where not all were tried.
    """
    failures: list[str] = []
    in_a_row = done = 0

    def work(job: Job) -> None:
        with contextlib.suppress(FileNotFoundError, ValueError):
            job.check(job.path.read_bytes())
            return
        fetch(client, job)

    pool = ThreadPoolExecutor(connections)
    try:
        names = {pool.submit(work, job): job.name for job in jobs}
        with tqdm(total=len(jobs), desc="pictures", unit="picture", disable=hidden(progress)) as bar:
            for future in as_completed(names):
                try:
                    future.result()
                    in_a_row = 0
                except DownloadError as error:
                    failures.append(f"{names[future]}: {error}")
                    in_a_row += 1
                done += 1
                bar.update()
                if in_a_row == IN_A_ROW and done < len(jobs):
                    client.stopped.set()
                    break
    except BaseException:
        client.stopped.set()  # those at work leave at their next chunk
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return Outcome(failures, len(jobs) - done)


class _Part:
    """A large file that is not whole yet, and a note that says of which version of the server's file it is a part."""

    def __init__(self, path: Path):
        self.data = path.with_name(f"{path.name}.part")
        self.note = path.with_name(f"{path.name}.part.json")
        self.longest = 0
        """Bytes that were ever there, in this run."""

    def state(self) -> tuple[int, str, int]:
        """Bytes that are there, what goes into If-Range, and bytes of the whole; 0 bytes where it cannot be continued."""
        try:
            note = json.loads(self.note.read_text(encoding="utf-8"))
            have, version, total = self.data.stat().st_size, note["validator"], note["size"]
        except (OSError, ValueError, KeyError, TypeError):
            return 0, "", 0
        return (have, version, total) if version and isinstance(total, int) and have <= total else (0, "", 0)

    def begin(self, response: HTTPResponse) -> None:
        """Forget what is there: the whole file comes in this answer."""
        self.discard()
        note = {"validator": validator(response), "size": length(response)}
        write_bytes(self.note, json.dumps(note).encode())

    def discard(self) -> None:
        self.data.unlink(missing_ok=True)  # first, so that no note of another version ever stands beside it
        self.note.unlink(missing_ok=True)


def part_size(path: Path) -> int:
    """Bytes of a large file that an earlier `download` to `path` left, and that the next one may go on from."""
    return _Part(path).state()[0]


def download(client: Client, url: str, path: Path, check: Callable[[Path], None], progress: bool = True) -> None:
    """A large file. Until it is whole it is `path`.part, and a later call goes on from there.

    check: raises ValueError where the file is not what it should be; it is then thrown away. A part is continued only if
    the server still has the same file; `path`.part.json says which it was. Raises DownloadError, or OSError of the disk.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = _Part(path)
    while True:
        resumed = part.state()[0] > 0
        with tqdm(desc=path.name, unit="B", unit_scale=True, disable=hidden(progress)) as bar:
            client.persist(url, lambda bar=bar: _go_on(client, url, part, bar))  # type: ignore[misc]
        try:
            check(part.data)
            break
        except ValueError as error:
            part.discard()
            if not resumed:
                raise DownloadError(f"{url}: {error}; what came was thrown away") from error
            # The fault may lie in what an earlier run left: once more, from the first byte.
    with part.data.open("r+b") as file:
        os.fsync(file.fileno())
    part.data.replace(path)
    part.discard()


def _go_on(client: Client, url: str, part: _Part, bar: Any) -> None:
    """One request for what is missing of a large file. Raises TryAgain where something still is."""
    have, version, known = part.state()
    if have and have == known:
        return  # the earlier run ended between the last byte and the move
    headers = {"Range": f"bytes={have}-", "If-Range": version} if have else {}
    with client.answer(url, headers=headers, accepted=(200, 206, 416)) as response:
        if response.headers.get_content_type() == "text/html":  # of a hotel's network, say; the part is worth keeping
            raise DownloadError(f"{url}: a web page came instead of the file")
        total = length(response) if response.status == 200 else known
        if response.status == 200:  # the whole file: it has changed, or the server knows no ranges
            have = 0
            part.begin(response)
        elif not have or response.headers.get("Content-Range") != f"bytes {have}-{known - 1}/{known}":
            part.discard()
            raise TryAgain(f"status {response.status} does not continue the part that is there")
        bar.reset(total=total)
        bar.update(have)
        reason = ""
        with part.data.open("ab") as file:
            try:
                for chunk in client.chunks(response, None if total is None else total - have):
                    file.write(chunk)
                    have += len(chunk)
                    bar.update(len(chunk))
            except TryAgain as error:
                reason = str(error)
    # Only what is new counts as getting on: a server without ranges that always cuts would else be asked for ever.
    further = have >= part.longest + PROGRESS
    part.longest = max(part.longest, have)
    if reason or (total is not None and have != total):
        reached = f"after {have} of {'unknown' if total is None else total} bytes"
        raise TryAgain(f"{reason or 'the connection ended'} {reached}", further=further)
