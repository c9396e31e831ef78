"""Downloads from a server that misbehaves: each fault is either recovered from or said in one line; no file is in part."""

import errno
import os
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
from faulty_server import Fault, Site, announce, cut, instead, serve, stall, status

from ddetr_lite.datasets import download as download_module
from ddetr_lite.datasets.download import (
    IN_A_ROW,
    Job,
    check_free_space,
    download,
    fetch,
    fetch_many,
    part_size,
    readable,
)
from ddetr_lite.datasets.web import Client, DownloadError, Patience, Stopped
from ddetr_lite.writing import sweep, write_bytes

BIG = bytes(range(256)) * 12_000  # 3 MB
SMALL = b"picture " * 1000
PAGE = b"<html>Please log in</html>"


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with serve({"/big.zip": BIG, "/small": SMALL}.items()) as site:
        yield site


class Waits(list[float]):
    """The pauses that a client makes, none of them for real."""

    def client(self, tries: int = 3, timeout: float = 5) -> Client:
        return Client(Patience(timeout=timeout, tries=tries), sleep=self.append)


@pytest.fixture
def waits() -> Waits:
    return Waits()


def is_big(path: Path) -> None:
    if path.read_bytes() != BIG:
        raise ValueError("its hash is wrong")


def is_small(content: bytes) -> None:
    if content != SMALL:
        raise ValueError("the picture does not decode")


def job(site: Site, folder: Path, name: str = "small") -> Job:
    return Job(f"image id {name}", f"{site.url}/{name}", folder / name, is_small)


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_a_file_comes_whole_and_alone(site: Site, tmp_path: Path, waits: Waits) -> None:
    fetch(waits.client(), job(site, tmp_path))
    assert (tmp_path / "small").read_bytes() == SMALL
    download(waits.client(), f"{site.url}/big.zip", tmp_path / "big.zip", is_big, progress=False)
    assert (tmp_path / "big.zip").read_bytes() == BIG
    assert names(tmp_path) == ["big.zip", "small"]
    assert waits == []
    assert waits.client().size(f"{site.url}/big.zip") == len(BIG)


@pytest.mark.parametrize(
    "fault",
    [
        cut(100),
        cut(0),
        instead(SMALL[:-1] + b"?"),
        instead(PAGE),
        status(500),
        status(503),
        announce(len(SMALL) + 5),
        announce(len(SMALL) - 5),
    ],
    ids=["cut", "cut at once", "corrupted", "page", "500", "503", "too long", "too short"],
)
def test_a_passing_fault_costs_a_second_try(site: Site, tmp_path: Path, waits: Waits, fault: Fault) -> None:
    site.spoil("/small", fault)
    fetch(waits.client(), job(site, tmp_path))
    assert (tmp_path / "small").read_bytes() == SMALL
    assert waits == [1.0]
    assert len(site.asked("/small")) == 2


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (cut(100), "ended after 100 of 8000 bytes"),
        (instead(PAGE), "does not decode"),
        (status(500), "the server answers 500"),
        (announce(len(SMALL) + 5), "ended after 8000 of 8005 bytes"),
    ],
)
def test_a_lasting_fault_is_given_up_and_leaves_nothing(
    site: Site, tmp_path: Path, waits: Waits, fault: Fault, message: str
) -> None:
    site.spoil("/small", fault, always=True)
    with pytest.raises(DownloadError, match=rf"/small: .*{message}.*\(tries: 3\)"):
        fetch(waits.client(), job(site, tmp_path))
    assert waits == [1.0, 2.0]
    assert names(tmp_path) == []


@pytest.mark.parametrize("code", [400, 403, 404, 410])
def test_what_cannot_pass_is_tried_once(site: Site, tmp_path: Path, waits: Waits, code: int) -> None:
    site.spoil("/small", status(code), always=True)
    with pytest.raises(DownloadError, match=f"/small: the server answers {code}"):
        fetch(waits.client(), job(site, tmp_path))
    assert waits == []
    assert len(site.asked("/small")) == 1


def test_a_stall_is_noticed(site: Site, tmp_path: Path, waits: Waits) -> None:
    site.spoil("/small", stall(100))
    fetch(waits.client(timeout=0.2), job(site, tmp_path))
    assert waits == [1.0]
    site.spoil("/small", stall(100), always=True)
    with pytest.raises(DownloadError, match=r"no byte came for 0\.2 s \(tries: 2\)"):
        fetch(waits.client(tries=2, timeout=0.2), job(site, tmp_path))


def test_a_server_that_is_not_there(tmp_path: Path, waits: Waits) -> None:
    with serve() as gone:
        url = gone.url
    with pytest.raises(DownloadError, match=r"cannot be reached: .*refused.*\(tries: 3\)"):
        waits.client().size(url)


def test_a_busy_server_is_given_the_time_it_asks_for(site: Site, tmp_path: Path, waits: Waits) -> None:
    soon = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    site.spoil("/small", status(429, Retry_After="7"), status(503, Retry_After=soon))
    fetch(waits.client(), job(site, tmp_path))
    assert waits[0] == 7
    assert 50 < waits[1] <= 60
    site.spoil("/small", status(429, Retry_After="soon"))  # neither a number nor a date
    waits.clear()
    fetch(waits.client(), job(site, tmp_path))
    assert waits == [1.0]
    site.spoil("/small", status(429, Retry_After="9999"))
    with pytest.raises(DownloadError, match=r"answers 429 .* asks to wait 9999 s: run again later"):
        fetch(waits.client(), job(site, tmp_path))


def test_redirects_are_followed_to_web_addresses_only(site: Site, tmp_path: Path, waits: Waits) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(SMALL)
    site.spoil("/small", status(302, Location="/other"))
    site.files["/other"] = SMALL
    fetch(waits.client(), job(site, tmp_path))
    assert len(site.asked("/other")) == 1
    site.spoil("/small", status(301, Location="/small"), always=True)
    with pytest.raises(DownloadError, match="/small: more than 5 redirects"):
        fetch(waits.client(), job(site, tmp_path, "small"))
    assert len(site.asked("/small")) == 1 + 6
    for place in (secret.as_uri(), "ftp://127.0.0.1/x", "data:,x"):
        site.spoil("/small", status(302, Location=place))
        with pytest.raises(DownloadError, match=r"redirected to .*only http:// and https://"):
            fetch(waits.client(), job(site, tmp_path))
    with pytest.raises(DownloadError, match="only http:// and https://"):
        waits.client().size(secret.as_uri())
    with pytest.raises(DownloadError, match="not a web address"):
        waits.client().size("http://127.0.0.1:port/")
    assert waits == []


def test_a_file_beyond_all_measure_is_refused(site: Site, tmp_path: Path, waits: Waits) -> None:
    site.spoil("/small", announce(10**12))
    with pytest.raises(DownloadError, match="larger than 67 MB"):
        fetch(waits.client(), job(site, tmp_path))


def test_no_byte_is_read_beyond_the_announced_length(site: Site, tmp_path: Path, waits: Waits) -> None:
    site.files["/large"] = bytes(200_000)
    site.spoil("/large", announce(100_000))
    sizes: list[int] = []
    fetch(waits.client(), Job("image id 1", f"{site.url}/large", tmp_path / "large", lambda c: sizes.append(len(c))))
    assert sizes == [100_000]


# --- one large file that goes on ---


def interrupted(site: Site, folder: Path, waits: Waits, after: int = 1_000_000) -> Path:
    """A download that ended in the middle."""
    site.spoil("/big.zip", cut(after), status(404))
    with pytest.raises(DownloadError, match="404"):
        download(waits.client(), f"{site.url}/big.zip", folder / "big.zip", is_big, progress=False)
    assert names(folder) == ["big.zip.part", "big.zip.part.json"]
    assert part_size(folder / "big.zip") == after
    site.log.clear()
    waits.clear()
    return folder / "big.zip"


def test_an_interrupted_download_goes_on(site: Site, tmp_path: Path, waits: Waits) -> None:
    path = interrupted(site, tmp_path, waits)
    download(waits.client(), f"{site.url}/big.zip", path, is_big, progress=False)
    assert path.read_bytes() == BIG
    assert [h.get("Range") for h in site.asked("/big.zip")] == ["bytes=1000000-"]
    assert names(tmp_path) == ["big.zip"]


def test_cuts_and_stalls_within_a_run_go_on_from_where_they_were(site: Site, tmp_path: Path, waits: Waits) -> None:
    site.spoil("/big.zip", stall(300_000))
    path = tmp_path / "big.zip"
    download(waits.client(timeout=0.3), f"{site.url}/big.zip", path, is_big, progress=False)
    assert [h.get("Range") for h in site.asked("/big.zip")] == [None, "bytes=300000-"]
    assert path.read_bytes() == BIG


def test_a_server_without_ranges_starts_again_and_is_not_asked_for_ever(
    site: Site, tmp_path: Path, waits: Waits
) -> None:
    path = interrupted(site, tmp_path, waits)
    site.ranges = False
    download(waits.client(), f"{site.url}/big.zip", path, is_big, progress=False)
    assert path.read_bytes() == BIG
    path.unlink()
    site.log.clear()
    site.spoil("/big.zip", cut(2_500_000), always=True)
    with pytest.raises(DownloadError, match="ended after 2500000 of 3072000 bytes"):
        download(waits.client(), f"{site.url}/big.zip", path, is_big, progress=False)
    assert len(site.asked("/big.zip")) == 3


def test_a_line_that_often_breaks_but_gets_on_is_not_given_up(
    site: Site, tmp_path: Path, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download_module, "PROGRESS", 100_000)

    def short(handler: Any, content: bytes) -> None:
        start = int(handler.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        rest = content[start:]
        handler.reply(206, {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"}, rest, send=400_000)

    site.spoil("/big.zip", cut(400_000), *[short] * 7)
    download(waits.client(tries=2), f"{site.url}/big.zip", tmp_path / "big.zip", is_big, progress=False)
    assert (tmp_path / "big.zip").read_bytes() == BIG
    assert waits == [1.0] * 7


def test_a_file_that_changed_is_taken_from_its_beginning(site: Site, tmp_path: Path, waits: Waits) -> None:
    path = interrupted(site, tmp_path, waits)
    site.files["/big.zip"] = changed = BIG[::-1]
    checked: list[bytes] = []
    download(waits.client(), f"{site.url}/big.zip", path, lambda p: checked.append(p.read_bytes()), progress=False)
    assert path.read_bytes() == changed
    assert checked == [changed]
    assert site.asked("/big.zip")[0]["If-Range"].startswith('"')


def test_a_range_that_does_not_fit_begins_anew(site: Site, tmp_path: Path, waits: Waits) -> None:
    for fault in (status(416), status(206, Content_Range="bytes 5-9/10")):
        path = interrupted(site, tmp_path, waits)
        site.spoil("/big.zip", fault)
        download(waits.client(), f"{site.url}/big.zip", path, is_big, progress=False)
        assert path.read_bytes() == BIG
        assert [h.get("Range") for h in site.asked("/big.zip")] == ["bytes=1000000-", None]
        path.unlink()


def test_a_part_that_was_damaged_on_the_disk_is_fetched_once_more(site: Site, tmp_path: Path, waits: Waits) -> None:
    path = interrupted(site, tmp_path, waits)
    part = tmp_path / "big.zip.part"
    part.write_bytes(bytes(part.stat().st_size))
    download(waits.client(), f"{site.url}/big.zip", path, is_big, progress=False)
    assert path.read_bytes() == BIG
    assert [h.get("Range") for h in site.asked("/big.zip")] == ["bytes=1000000-", None]


def test_a_part_that_is_whole_or_of_unknown_origin(site: Site, tmp_path: Path, waits: Waits) -> None:
    path = interrupted(site, tmp_path, waits)
    (tmp_path / "big.zip.part").write_bytes(BIG)  # stopped between the last byte and the move
    download(waits.client(), f"{site.url}/big.zip", path, is_big, progress=False)
    assert site.log == []
    path.unlink()
    (tmp_path / "big.zip.part").write_bytes(b"of another file")
    download(waits.client(), f"{site.url}/big.zip", path, is_big, progress=False)
    assert [h.get("Range") for h in site.asked("/big.zip")] == [None]
    assert path.read_bytes() == BIG


def test_a_login_page_does_not_cost_the_part(site: Site, tmp_path: Path, waits: Waits) -> None:
    path = interrupted(site, tmp_path, waits)
    site.spoil("/big.zip", instead(PAGE, "text/html; charset=utf-8"))
    with pytest.raises(DownloadError, match="a web page came instead of the file"):
        download(waits.client(), f"{site.url}/big.zip", path, is_big, progress=False)
    assert part_size(path) == 1_000_000


def test_a_wrong_file_is_thrown_away(site: Site, tmp_path: Path, waits: Waits) -> None:
    site.files["/big.zip"] = BIG[:-1]
    with pytest.raises(DownloadError, match="its hash is wrong; what came was thrown away"):
        download(waits.client(), f"{site.url}/big.zip", tmp_path / "big.zip", is_big, progress=False)
    assert names(tmp_path) == []
    assert len(site.asked("/big.zip")) == 1


# --- many files ---


def many(site: Site, folder: Path, count: int) -> list[Job]:
    for i in range(count):
        site.files[f"/{i}"] = SMALL
    return [job(site, folder, str(i)) for i in range(count)]


def test_failures_are_listed_and_the_others_kept(site: Site, tmp_path: Path, waits: Waits) -> None:
    jobs = many(site, tmp_path, 30)
    del site.files["/3"]
    site.spoil("/7", instead(PAGE), always=True)
    site.spoil("/11", cut(10))
    outcome = fetch_many(waits.client(), jobs, 4, progress=False)
    assert outcome.left == 0
    assert sorted(line.split(":")[0] for line in outcome.failures) == ["image id 3", "image id 7"]
    assert names(tmp_path) == sorted({str(i) for i in range(30)} - {"3", "7"})
    site.log.clear()
    del site.faults["/7"]
    (tmp_path / "20").write_bytes(SMALL[:-1])  # not what this command would leave
    fetch_many(waits.client(), jobs, 4, progress=False)
    assert sorted({path for _, path, _ in site.log}) == ["/20", "/3", "/7"]
    assert (tmp_path / "20").read_bytes() == SMALL


def test_a_server_at_fault_is_not_asked_for_everything(site: Site, tmp_path: Path, waits: Waits) -> None:
    jobs = many(site, tmp_path, 200)
    site.files.clear()
    outcome = fetch_many(waits.client(), jobs, 4, progress=False)
    assert len(outcome.failures) == IN_A_ROW
    assert outcome.left == 200 - IN_A_ROW
    assert len(site.log) < 100


def test_failures_here_and_there_do_not_end_a_run(site: Site, tmp_path: Path, waits: Waits) -> None:
    jobs = many(site, tmp_path, 75)
    for i in range(0, 75, 3):
        del site.files[f"/{i}"]
    outcome = fetch_many(waits.client(), jobs, 2, progress=False)
    assert len(outcome.failures) == 25 > IN_A_ROW
    assert outcome.left == 0


def test_a_full_disk_ends_the_run_with_whole_files_only(
    site: Site, tmp_path: Path, waits: Waits, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = many(site, tmp_path, 30)
    calls: list[int] = []

    def full(handle: int) -> None:
        calls.append(handle)
        if len(calls) > 5:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as caught:
        fetch_many(waits.client(), jobs, 2, progress=False)
    assert not isinstance(caught.value, DownloadError)
    assert len(site.log) < 30
    assert waits == []
    assert len(names(tmp_path)) == 5
    assert all((tmp_path / name).read_bytes() == SMALL for name in names(tmp_path))


def test_an_interrupt_stops_the_threads_and_leaves_whole_files(site: Site, tmp_path: Path) -> None:
    """Threads that wait for another try end too: with pauses of an hour, this test would never."""
    jobs = many(site, tmp_path, 40)
    site.spoil("/0", status(500), always=True)
    client = Client(Patience(pause=3600, longest_pause=3600))

    def interrupt(content: bytes) -> None:
        raise KeyboardInterrupt

    jobs[10] = Job("image id 10", jobs[10].url, jobs[10].path, interrupt)
    with pytest.raises(KeyboardInterrupt):
        fetch_many(client, jobs, 2, progress=False)
    assert all((tmp_path / name).read_bytes() == SMALL for name in names(tmp_path))
    assert {"0", "10"}.isdisjoint(names(tmp_path))
    assert len(names(tmp_path)) < 39
    with pytest.raises(Stopped):
        client.size(jobs[0].url)


# --- the disk ---


def test_what_is_written_replaces_in_one_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def fail(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]
    (tmp_path / ".file-12.unfinished").write_bytes(b"of a run that was killed")
    sweep(tmp_path)
    assert names(tmp_path) == ["file"]


def test_room_on_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 5, 2_500_000))
    check_free_space(tmp_path / "not" / "yet", 2_500_000, "pictures")
    with pytest.raises(OSError, match=r"pictures need 3 MB, and the disk of .*yet has 2 MB free: make room"):
        check_free_space(tmp_path / "not" / "yet", 2_500_001, "pictures")
    assert [readable(s) for s in (0, 999, 1000, 252_907_541, 999_600_000)] == [
        "0 bytes",
        "999 bytes",
        "1 kB",
        "253 MB",
        "1.0 GB",
    ]


def test_patience_that_makes_no_sense() -> None:
    for values in ({"timeout": 0}, {"timeout": float("nan")}, {"tries": 0}):
        with pytest.raises(ValueError, match=f"--{next(iter(values))} is"):
            Patience(**values)
