"""Main memory is asked about before a run, because a system that has none left ends the run without a word."""

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from test_engine import tiny_recipe

from ddetr_lite.datasets.loading import Batch
from ddetr_lite.datasets.shapes import ShapesConfig, write_shapes
from ddetr_lite.engine.log import read_log
from ddetr_lite.engine.step import Step
from ddetr_lite.engine.train import train
from ddetr_lite.memory import free_bytes, taken_by

GB = 1_000_000_000


def _machine(folder: Path, available: int) -> Path:
    folder.mkdir()
    (folder / "meminfo").write_text(f"MemTotal:       99999999 kB\nMemFree: 5 kB\nMemAvailable:   {available} kB\n")
    return folder


def _container(folder: Path, names: tuple[str, str, str, str], limit: str, used: int, cached: int) -> Path:
    for name, text in zip(names[:3], (limit, str(used), f"anon 12\n{names[3]} {cached}\n"), strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text + "\n")
    return folder


def _group_of(machine: Path, line: str) -> Path:
    (machine / "self").mkdir()
    (machine / "self" / "cgroup").write_text(f"7:cpu:/x\n{line}\n")
    return machine


SECOND = ("memory.max", "memory.current", "memory.stat", "inactive_file")
FIRST = (
    "memory/memory.limit_in_bytes",
    "memory/memory.usage_in_bytes",
    "memory/memory.stat",
    "total_inactive_file",
)


@pytest.mark.parametrize("names", [SECOND, FIRST])
def test_a_containers_limit_counts_where_it_is_smaller_than_what_the_machine_has(
    tmp_path: Path, names: tuple[str, str, str, str]
) -> None:
    machine = _machine(tmp_path / "proc", available=4_000_000)
    assert free_bytes(machine, tmp_path / "none") == 4_000_000 * 1024
    tight = _container(tmp_path / "tight", names, str(3 * GB), used=GB, cached=GB // 4)
    assert free_bytes(machine, tight) == 3 * GB - GB + GB // 4
    wide = _container(tmp_path / "wide", names, str(99 * GB), used=GB, cached=0)
    assert free_bytes(machine, wide) == 4_000_000 * 1024
    full = _container(tmp_path / "full", names, str(GB), used=2 * GB, cached=0)
    assert free_bytes(machine, full) == 0
    if names is SECOND:
        without = _container(tmp_path / "without", names, "max", used=GB, cached=0)
        assert free_bytes(machine, without) == 4_000_000 * 1024


@pytest.mark.parametrize("version", [2, 1])
def test_a_limit_of_any_group_that_this_process_is_in_counts(tmp_path: Path, version: int) -> None:
    names, kind = (SECOND, "") if version == 2 else (FIRST, "memory/")
    machine = _group_of(
        _machine(tmp_path / "proc", 4_000_000), "0::/slurm/job" if version == 2 else "4:memory:/slurm/job"
    )
    groups = tmp_path / "groups"
    limit, used, statistics_, cached = names
    mine, theirs = (
        [
            name.replace("memory/", f"memory/{group}/", 1) if kind else f"{group}/{name}"
            for name in (limit, used, statistics_)
        ]
        for group in ("slurm", "other")
    )
    _container(groups, (mine[0], mine[1], mine[2], cached), str(3 * GB), used=2 * GB, cached=0)
    assert free_bytes(machine, groups) == GB
    with (groups / mine[2]).open("a") as statistics:
        statistics.write(f"{'total_' * (version == 1)}active_file 5\n")
    assert free_bytes(machine, groups) == GB + 5  # pages of files that were read twice can be given back, too
    _container(groups, (theirs[0], theirs[1], theirs[2], cached), str(GB), used=GB, cached=0)
    assert free_bytes(machine, groups) == GB + 5


def test_a_system_that_does_not_say_what_is_free_is_not_asked_twice(tmp_path: Path) -> None:
    assert free_bytes(tmp_path) is None
    assert taken_by(lambda: None, tmp_path) is None


@pytest.mark.skipif(not os.access("/proc/self/clear_refs", os.W_OK), reason="needs Linux's /proc")
def test_what_work_takes_is_seen_also_where_it_is_given_back() -> None:
    def work(megabytes: int) -> Callable[[], object]:
        return lambda: torch.ones(megabytes, 1_000_000, dtype=torch.uint8)

    taken_by(work(1))
    few, many = taken_by(work(20)), taken_by(work(300))
    assert few is not None
    assert many is not None
    assert few < 120e6
    assert 280e6 < many < 420e6
    again = taken_by(work(20))
    assert again is not None
    assert again < 120e6  # the mark starts anew


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "shapes"
    return write_shapes(folder, ShapesConfig(size=48, min_size=0.15, train_images=20, val_images=5), progress=False)


@pytest.mark.parametrize(
    ("a_picture", "free", "remedy"),
    [
        (GB, 9 * GB, None),
        (GB, 7 * GB, "warning"),
        (
            GB,
            5 * GB,
            r"8 pictures at a time, .* needs about 8\.\d GB of memory, and 5\.0 GB are free: .*--accumulate 2, or",
        ),
        (GB, 3 * GB, "--accumulate 4, or.*; --no-forecast tries it all the same"),
        (GB, GB // 2, r"needs about 8\.\d GB of memory, and 0\.5 GB are free: take smaller pictures \(--short-sides"),
    ],
)
def test_a_batch_that_memory_cannot_hold_is_an_error_before_the_first_step(
    shapes: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    a_picture: int,
    free: int,
    remedy: str | None,
) -> None:
    seen: list[tuple[int, float]] = []

    def shrunk(batch: Batch, by: float) -> Batch:
        seen.append((len(batch.counts), by))
        return batch

    def taken(work: Callable[[], object]) -> int:
        work()
        return 2 * a_picture  # of the two pictures that are measured

    monkeypatch.setattr("ddetr_lite.engine.forecast.taken_by", taken)
    monkeypatch.setattr("ddetr_lite.engine.forecast.free_bytes", lambda: free)
    monkeypatch.setattr("ddetr_lite.engine.forecast._shrunk", shrunk)
    chosen = tiny_recipe(shapes, "detr", epochs=1, batch=8, evaluate_every=0, forecast=True)
    if remedy in (None, "warning"):
        train(chosen, tmp_path / "run", progress=False)
        line = next(line for line in read_log(tmp_path / "run" / "log.jsonl") if line["kind"] == "forecast")
        assert line["note"].startswith("A step with 8 pictures" if remedy else "")
        assert bool(line["note"]) == bool(remedy)
    else:
        with pytest.raises(ValueError, match=remedy):
            train(chosen, tmp_path / "run", progress=False)
        assert ("--accumulate" in remedy) == (free > a_picture)
    assert seen == [(2, 1.0)]


def test_larger_pictures_are_measured_small_and_need_as_much_more_as_they_have_pixels(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides: list[tuple[int, ...]] = []
    gradient = Step.gradient

    def looked(step: Step, pieces: Sequence[Batch]) -> object:
        sides.extend(tuple(piece.images.pixels.shape) for piece in pieces)
        return gradient(step, pieces)

    monkeypatch.setattr(Step, "gradient", looked)
    monkeypatch.setattr("ddetr_lite.engine.forecast.taken_by", lambda work: work() and GB // 10)
    monkeypatch.setattr("ddetr_lite.engine.forecast.free_bytes", lambda: GB // 10)
    chosen = tiny_recipe(shapes, "detr", epochs=1, batch=4, forecast=True)
    chosen = replace(chosen, augment=replace(chosen.augment, short_sides=(800,), eval_short_side=800, max_side=800))
    with pytest.raises(ValueError, match=r"4 pictures at a time, .* needs about 0\.8 GB of memory"):  # 4 · 4 / 2 · 0.1
        train(chosen, tmp_path / "run", progress=False)
    assert sides == [(2, 3, 400, 400)] * 2  # once to make what is made once
    assert not (tmp_path / "run").exists()  # nothing was begun


def test_each_process_of_a_machine_needs_its_own(shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddetr_lite.engine.forecast.taken_by", lambda work: work() and GB)
    monkeypatch.setattr("ddetr_lite.engine.forecast.free_bytes", lambda: 5 * GB // 2)
    chosen = tiny_recipe(shapes, "detr", epochs=1, batch=4, evaluate_every=0, forecast=True)
    train(chosen, tmp_path / "one", progress=False)  # 4 · 1 / 2 = 2 GB
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ValueError, match=r"needs about 4\.\d GB of memory"):
        train(chosen, tmp_path / "two", progress=False)
