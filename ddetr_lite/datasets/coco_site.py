"""COCO 2017 from its own site into a folder, only as much as a subset needs.

FOLDER/annotations/instances_train.json   the subset's annotations, and so for val; written when all pictures are there
FOLDER/train/, FOLDER/val/                its pictures
FOLDER/source/                            COCO's annotation files, from which a larger subset is chosen without a download
FOLDER/download.json                      the options of the finished subset, sizes and hashes of its files

Reading COCO's annotation file of the training pictures takes about 3 GB of memory. Pictures of an earlier, larger subset
stay: nothing is deleted, they are only no longer listed.
"""

import dataclasses
import hashlib
import io
import json
import shutil
import urllib.parse
import zipfile
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from ddetr_lite.datasets.coco_subset import SPLITS, CocoSubset, write_subset
from ddetr_lite.datasets.download import Job, check_free_space, download
from ddetr_lite.datasets.fields import Record
from ddetr_lite.datasets.web import Client, DownloadError
from ddetr_lite.writing import replacing, sweep, write_bytes

SITE = "http://images.cocodataset.org"
ARCHIVE = "annotations_trainval2017.zip"
ARCHIVE_MD5 = "f4bbac642086de4f52a3fdda2de5fa2c"
SAMPLE = 20  # pictures whose sizes are asked for
MEAN_PICTURE = 163_000  # bytes: COCO's train2017 and val2017, size of the archive over number of pictures
FORMAT = "ddetr-lite data coco 1"


@dataclass(frozen=True)
class CocoDownload:
    """A folder, the site that fills it, and the subset it is to hold. site: http(s) address above train2017/."""

    folder: Path
    site: str
    subset: CocoSubset

    @property
    def is_official(self) -> bool:
        """Whether the site is COCO's own."""
        return urllib.parse.urlsplit(self.site).hostname == urllib.parse.urlsplit(SITE).hostname

    @property
    def archive_url(self) -> str:
        return f"{self.site.rstrip('/')}/annotations/{ARCHIVE}"

    @property
    def archive(self) -> Path:
        return self.folder / "source" / ARCHIVE

    @property
    def manifest(self) -> Path:
        return self.folder / "download.json"

    def annotations(self, split: str) -> Path:
        return self.folder / "annotations" / f"instances_{split}.json"

    def source(self, split: str) -> Path:
        """COCO's own file. Not in annotations/, where it could be taken for the subset's."""
        return self.folder / "source" / f"instances_{split}2017.json"

    def has_sources(self) -> bool:
        return all(self.source(split).is_file() for split in SPLITS)

    def read_manifest(self) -> dict[str, Any]:
        """What an earlier run finished; {} in a new or empty folder. A folder with anything else is an error.

        Nothing that others put there is ever overwritten: FileExistsError, and so for pictures of another site.
        """
        if self.folder.exists() and not self.folder.is_dir():
            raise NotADirectoryError(f"{self.folder} is a file: give the name of a folder that is new or empty")
        if not self.folder.exists() or not any(self.folder.iterdir()):
            return {}
        try:
            content = json.loads(self.manifest.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            content = None
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise FileExistsError(
                f"{self.folder} holds other files, and no {self.manifest.name} of this command: give another --folder"
            )
        if content.get("site") != self.site.rstrip("/"):
            raise FileExistsError(
                f"{self.folder} comes from {content.get('site')}: give that --site, or another --folder"
            )
        return content

    def begin(self) -> None:
        """Make the folder, mark it as this command's, and remove what a run that was killed left."""
        if not self.read_manifest():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write_manifest({"subset": None, "pictures": {}, "annotations": {}})
        for name in ("annotations", "source", *SPLITS):
            (self.folder / name).mkdir(exist_ok=True)
            sweep(self.folder / name)
        sweep(self.folder)

    def is_complete(self) -> bool:
        """Whether the folder holds this very subset, by the sizes of its pictures and the hashes of its annotations."""
        content = self.read_manifest()
        return (
            content.get("subset") == _describe(self.subset)
            and all(_size(self.folder / name) == size for name, size in content["pictures"].items())
            and all(_sha256(self.folder / name) == digest for name, digest in content["annotations"].items())
        )

    def finish(self, chosen: dict[str, Record]) -> None:
        """Write the annotations of a subset whose pictures are all there, and say so in the manifest."""
        pictures, annotations = {}, {}
        for split, content in chosen.items():
            path = self.annotations(split)
            write_subset(path, content)
            annotations[path.relative_to(self.folder).as_posix()] = _sha256(path)
            names = [f"{split}/{image['file_name']}" for image in content["images"]]
            pictures.update({name: _size(self.folder / name) for name in names})
        self._write_manifest(
            {"subset": _describe(self.subset), "pictures": pictures, "annotations": annotations},
        )

    def _write_manifest(self, content: dict[str, Any]) -> None:
        content = {"format": FORMAT, "site": self.site.rstrip("/"), **content}
        write_bytes(self.manifest, json.dumps(content, indent=1).encode())

    def fetch_annotations(self, client: Client, progress: bool = True) -> None:
        """COCO's two files of instances, out of the archive, which is then removed."""
        archive = self.archive
        if not archive.is_file():
            download(client, self.archive_url, archive, self._check_archive, progress)
        try:
            with zipfile.ZipFile(archive) as opened:
                members = {split: opened.getinfo(f"annotations/instances_{split}2017.json") for split in SPLITS}
                size = sum(m.file_size for m in members.values())
                check_free_space(self.folder, size, f"the annotations in {archive.name}, unpacked,")
                for split, member in members.items():
                    with opened.open(member) as stream, replacing(self.source(split)) as file:
                        shutil.copyfileobj(stream, file, 1 << 20)
        except KeyError as error:
            archive.unlink()
            raise ValueError(f"{self.archive_url}: {error.args[0]}; is --site right?") from error
        except zipfile.BadZipFile as error:
            archive.unlink()
            raise ValueError(f"{archive} is damaged ({error}) and was removed: run the command again") from error
        archive.unlink()

    def _check_archive(self, path: Path) -> None:
        # COCO publishes no hash of its own; this one is what its archive has had everywhere since 2017. Another site may
        # pack the same files differently, so that there only the CRCs within the archive are checked.
        if self.is_official:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "md5").hexdigest()
            if digest != ARCHIVE_MD5:
                raise ValueError(f"its MD5 is {digest} and should be {ARCHIVE_MD5}")
        try:
            with zipfile.ZipFile(path) as archive:
                damaged = archive.testzip()
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise ValueError(f"it is no whole zip archive ({error})") from error
        if damaged is not None:
            raise ValueError(f"{damaged} in it is damaged (its CRC is wrong)")

    def read_source(self, split: str) -> Any:
        """The content of COCO's own file. A damaged one is removed."""
        path = self.source(split)
        try:
            return json.loads(path.read_bytes())
        except ValueError as error:
            path.unlink()
            raise ValueError(f"{path} is no JSON ({error}) and was removed: run the command again") from error

    def jobs(self, chosen: dict[str, Record]) -> list[Job]:
        """The pictures that are not known to be there: a run that was stopped left some that are checked again."""
        known = self.read_manifest().get("pictures", {})
        jobs = []
        for split, content in chosen.items():
            for image in content["images"]:
                name = f"{split}/{image['file_name']}"
                if name not in known or _size(self.folder / name) != known[name]:
                    url = f"{self.site.rstrip('/')}/{split}2017/{image['file_name']}"
                    check = _PictureCheck(image["width"], image["height"])
                    jobs.append(Job(f"image id {image['id']}", url, self.folder / name, check))
        return jobs


@dataclass(frozen=True)
class _PictureCheck:
    """Raises ValueError unless the bytes are a whole picture of this size."""

    width: int
    height: int

    def __call__(self, content: bytes) -> None:
        if content.lstrip()[:1] == b"<":
            raise ValueError("a web page came instead of the picture")
        try:
            with Image.open(io.BytesIO(content), formats=("JPEG", "PNG")) as picture:
                width, height = picture.size
                if (width, height) == (self.width, self.height):  # else not worth decoding, and perhaps huge
                    picture.load()
        except Exception as error:  # a decoder meets damaged bytes with errors of many kinds
            said = "cannot be identified" if isinstance(error, UnidentifiedImageError) else str(error)
            raise ValueError(f"the picture does not decode: {said}") from error
        if (width, height) != (self.width, self.height):
            raise ValueError(f"the picture has {width}×{height} pixels, the annotations say {self.width}×{self.height}")


def estimate(client: Client, jobs: Sequence[Job], connections: int) -> tuple[int, int]:
    """Bytes of the pictures as estimated from the sizes of the first few, and how many these were.

    Pictures come in random order, so that the first few are a fair sample; a server that tells no sizes gives (0, 0).
    Raises DownloadError where none of them can be asked for.
    """
    sizes, errors = [], []
    pool = ThreadPoolExecutor(connections)
    try:
        for future in [pool.submit(client.size, job.url) for job in jobs[:SAMPLE]]:
            try:
                sizes.append(future.result())
            except DownloadError as error:  # reported later, by the download itself
                errors.append(error)
    except BaseException:
        client.stopped.set()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    if errors and not sizes:
        raise errors[0]
    known = [size for size in sizes if size is not None]
    return (round(sum(known) / len(known) * len(jobs)), len(known)) if known else (0, 0)


def _describe(subset: CocoSubset) -> dict[str, Any]:
    return {**dataclasses.asdict(subset), "classes": sorted(subset.classes)}


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.is_file() else None


def _sha256(path: Path) -> str | None:
    if not path.is_file():
        return None
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
