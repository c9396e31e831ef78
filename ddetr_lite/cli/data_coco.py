"""`ddetr-lite data coco`: a part of COCO 2017, downloaded from COCO's own site."""

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from ddetr_lite.cli.parsing import FLAT, parse
from ddetr_lite.datasets.coco_site import MEAN_PICTURE, SITE, CocoDownload, estimate
from ddetr_lite.datasets.coco_subset import SPLITS, CocoSubset, check_classes, choose, describe
from ddetr_lite.datasets.download import check_free_space, fetch_many, part_size, readable
from ddetr_lite.datasets.fields import Record
from ddetr_lite.datasets.web import Client, DownloadError, Patience

SHOWN = 100  # failures that are listed


@dataclass(frozen=True)
class CocoOptions:
    """Download a part of COCO 2017: some classes, some pictures, and their annotations."""

    folder: Path = Path("data/coco")
    subset: Annotated[CocoSubset, FLAT] = dataclasses.field(default_factory=CocoSubset)
    site: str = SITE
    """Address above annotations/, train2017/ and val2017/."""
    connections: int = 16
    """Pictures fetched at once."""
    timeout: float = 20.0
    """Seconds without a byte after which a connection counts as broken."""
    tries: int = 5
    """Requests for one file before it counts as failed."""
    dry_run: bool = False
    """Say what would be downloaded and how large it is, then stop."""

    def __post_init__(self) -> None:
        if not 1 <= self.connections <= 64:
            raise ValueError(f"--connections is {self.connections}: give a number from 1 to 64")
        if not self.site.lower().startswith(("http://", "https://")):
            raise ValueError(f"--site is {self.site!r}: give an address that begins with http:// or https://")
        Patience(timeout=self.timeout, tries=self.tries)


def data_coco(words: list[str]) -> None:
    """Download a part of COCO: `ddetr-lite data coco --images 5000 --classes person,car`."""
    options = parse(CocoOptions, words, "ddetr-lite data coco")
    try:
        make_coco(options, Client(Patience(timeout=options.timeout, tries=options.tries)))
    except KeyboardInterrupt:
        print("\nddetr-lite: stopped; the same command goes on from here", file=sys.stderr)
        raise SystemExit(130) from None


def make_coco(options: CocoOptions, client: Client, progress: bool = True) -> None:
    """Bring the folder to what the options say, from whatever an earlier run left. Raises DownloadError, OSError, ValueError.

    The annotations of the subset are written last: as long as a picture is missing, those of an earlier run stay valid.
    """
    target = CocoDownload(options.folder.expanduser(), options.site, options.subset)
    if target.is_complete():
        print(f"{target.folder} holds all of it already: nothing to do.")
        return
    print(f"COCO 2017 from {target.site} into {target.folder}", flush=True)
    if not target.has_sources():
        if target.is_official:
            from ddetr_lite.convert.coco_ids import COCO_CATEGORIES

            check_classes(target.subset.classes, COCO_CATEGORIES)  # before the archive is fetched for nothing
        _announce_annotations(target, client)
        if options.dry_run:
            print("Nothing was downloaded (--dry-run). Which pictures, and how large, is known with the annotations.")
            return
        target.begin()
        target.fetch_annotations(client, progress)
    print("Choosing pictures from COCO's annotations ...", flush=True)
    chosen = {
        split: choose(target.read_source(split), target.subset, split, target.source(split).name) for split in SPLITS
    }
    _announce_pictures(target, client, chosen, options.connections)
    if options.dry_run:
        print("Nothing was downloaded (--dry-run).")
        return
    target.begin()
    jobs = target.jobs(chosen)
    outcome = fetch_many(client, jobs, options.connections, progress=progress)
    if outcome.failures:
        for line in outcome.failures[:SHOWN]:
            print(line, file=sys.stderr)
        more = f" (the first {SHOWN} are listed)" if len(outcome.failures) > SHOWN else ""
        left = f"; {outcome.left} more were left, so many failed in a row" if outcome.left else ""
        raise DownloadError(
            f"{len(outcome.failures)} of {len(jobs)} pictures did not come{more}{left}. The others are kept and the "
            "annotations not written yet: run the same command again, or choose others with --seed"
        )
    target.finish(chosen)
    print(f"{target.folder} is ready.")


def _announce_annotations(target: CocoDownload, client: Client) -> None:
    """Say what the archive costs, exactly, and the pictures, roughly; look for room on the disk."""
    size, there = client.size(target.archive_url), part_size(target.archive)
    kept = f", {readable(there)} of it here" if there else ""
    print(f"  annotations: {target.archive_url}, {'of unknown size' if size is None else readable(size)}{kept}")
    counts = [target.subset.count(split) for split in SPLITS]
    rough = sum(counts) * MEAN_PICTURE
    if all(counts):
        print(f"  pictures: {sum(counts)}, about {readable(rough)} (estimated by the mean size of COCO's)", flush=True)
    else:
        print("  pictures: all that fit; how many is known with the annotations", flush=True)
    check_free_space(target.folder, max(0, (size or 0) - there) + rough, "annotations and pictures")


def _announce_pictures(target: CocoDownload, client: Client, chosen: dict[str, Record], connections: int) -> None:
    """Say which pictures were chosen and what they cost, estimated; look for room on the disk."""
    for split, content in chosen.items():
        print(f"  {split}: {describe(content)}")
    missing = [job for job in target.jobs(chosen) if not job.path.is_file()]
    total = sum(len(content["images"]) for content in chosen.values())
    if not missing:
        print(f"  pictures to download: none of {total}", flush=True)
        return
    size, sample = estimate(client, missing, connections)
    said = f"about {readable(size)} (estimated from the sizes of {sample})" if sample else "sizes unknown"
    print(f"  pictures to download: {len(missing)} of {total}, {said}", flush=True)
    check_free_space(target.folder, size, f"{len(missing)} pictures")
