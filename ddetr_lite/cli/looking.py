"""`ddetr-lite report` and `compare`: what came out of training."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from ddetr_lite.cli.parsing import Mistake, check_folder_option, parse


@dataclass(frozen=True)
class ReportOptions:
    """One HTML file about a run, `report.html` in its folder: curves, classes, worst pictures, recipe."""

    run: Positional[Path]
    """The run's folder, such as runs/shapes."""
    folder: Path | None = None
    """Where the data is now; by default where the run found it."""
    threshold: float | None = None
    """Detections that score less are no errors; by default the score at which F1 is best."""
    worst: int = 20
    """How many of the worst pictures to show."""


def report(words: list[str]) -> None:
    """Make one HTML page about a run."""
    options = parse(ReportOptions, words, "ddetr-lite report")
    from ddetr_lite.plots.report import write_report

    if options.threshold is not None and not 0 <= options.threshold <= 1:
        raise Mistake(f"--threshold {options.threshold} must lie in 0..1")
    check_folder_option(options.folder)
    if options.worst < 0:
        raise Mistake(f"--worst {options.worst} must not be negative")
    print(
        f"{write_report(options.run, options.folder, options.threshold, options.worst)} is written: open it in a browser."
    )


@dataclass(frozen=True)
class CompareOptions:
    """Runs beside each other: what came out, what it took, and in what their recipes differ."""

    runs: Positional[tuple[Path, ...]]
    """Folders of runs, or their logs."""
    out: Path = Path("runs/compare.png")
    """Where the figure goes."""


def compare(words: list[str]) -> None:
    """Compare runs: a table, and their curves in one figure."""
    options = parse(CompareOptions, words, "ddetr-lite compare")
    from ddetr_lite.plots.compare import comparison, comparison_figure, read_runs, text_table
    from ddetr_lite.plots.style import png

    if not options.runs:
        raise Mistake("name at least one run: ddetr-lite compare RUN RUN...")
    if options.out.suffix != ".png":
        raise Mistake(f"--out {options.out} must end in .png")
    runs = read_runs(options.runs)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_bytes(png(comparison_figure(runs)))
    print(text_table(comparison(runs)))
    print(f"\n{options.out}: AP against epochs and against time, and loss.")
