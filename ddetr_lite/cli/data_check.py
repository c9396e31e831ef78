"""`ddetr-lite data check`: what is wrong with a folder, what is in it, and how to train on it."""

import dataclasses
import json
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tyro.conf import Positional

from ddetr_lite.cli.parsing import Mistake, parse
from ddetr_lite.writing import write_bytes

if TYPE_CHECKING:
    from ddetr_lite.datasets.check import FolderCheck
    from ddetr_lite.datasets.findings import Finding
    from ddetr_lite.datasets.summary import Summary
    from ddetr_lite.engine.advice import Advice, DataFacts, Start

WIDTH = 110
EXAMPLES = 3
ROWS = 12  # classes that are printed: the most frequent, and the four rarest


@dataclass(frozen=True)
class CheckOptions:
    """Look for everything that is wrong with a folder in COCO's format, and advise how to train on it.

    Leaves with 0 where there are no errors, warnings or not, and with 1 where there are.
    """

    folder: Positional[Path]
    split: tuple[str, ...] = ("train", "val")
    """The splits; the first one is trained on, the second is for validation."""
    out: Path | None = None
    """Where the contact sheet, the histograms and the report go; by default runs/check/ and the folder's name."""
    model: str | None = None
    """A row of the papers' table, as for `ddetr-lite train --model`; by default deformable-detr."""
    start_from: Path | None = None
    """Advise how to fine-tune this checkpoint, or a run's best.pt."""
    batch: int | None = None
    """Pictures in a step, where it should not be as advised."""
    pictures: bool = True
    """Decode each picture. Without this only the annotations are read."""


def data_check(words: list[str]) -> None:
    """Report on a folder. Raises SystemExit(1) where it has errors."""
    options = parse(CheckOptions, words, "ddetr-lite data check")
    from ddetr_lite.datasets.check import check_folder
    from ddetr_lite.datasets.findings import count
    from ddetr_lite.datasets.summary import summarise
    from ddetr_lite.engine.advice import advise
    from ddetr_lite.engine.recipes import recipe

    if options.start_from and options.model:
        raise Mistake("--model is that of the checkpoint to start from: leave it out")
    start = _start(options.start_from) if options.start_from else None
    row = start.row if start else options.model or "deformable-detr"
    queries = getattr((start.recipe if start else recipe("coco", row)).model, "queries", None)
    result = check_folder(options.folder, options.split, options.pictures, queries, progress=True)
    summaries = [summarise(split) for split in result.splits]
    _print_findings(result.findings)
    for summary in summaries:
        _print_summary(summary)

    out = options.out or Path("runs/check") / (options.folder.resolve().name or "folder")
    out.mkdir(parents=True, exist_ok=True)
    advice = None
    for old in ("histograms.png", *(_sheet(number, name) for number, name in enumerate(options.split))):
        (out / old).unlink(missing_ok=True)  # an earlier check's
    if summaries and not result.trained_on:
        print(f"\nNo advice: split {options.split[0]!r}, which is trained on, cannot be read.")
    elif summaries and summaries[0].pictures and result.class_map():
        _draw(result, summaries[0], queries, out, options.pictures)
        _print_classes(result, summaries[0], row)
        classes = tuple(name for *_, name in result.class_map())
        advice = advise(_facts(options, summaries[0], classes), row, options.batch, start)
        _print_advice(advice)
    write_bytes(out / "report.json", _report(options, result, summaries, advice).encode())
    print(f"\n{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")
    numbers = [count(result.findings, severity) for severity in ("error", "warning", "note")]
    print("{} errors, {} warnings, {} notes.".format(*numbers) + (" Correct the errors first." if numbers[0] else ""))
    if numbers[0]:
        raise SystemExit(1)


def _start(path: Path) -> "Start":
    """What is advised about fine-tuning depends on this much of the checkpoint."""
    from ddetr_lite.engine.advice import Start
    from ddetr_lite.engine.checkpoint import load_model, sizes_of
    from ddetr_lite.engine.fine_tuning import recipe_of

    loaded = load_model(path)
    return Start(recipe_of(loaded, path), loaded.classes, resized=bool(sizes_of(loaded.about)))


def _print_findings(findings: list["Finding"]) -> None:
    """By kind, the gravest first: how many, what to do, and the first few."""
    from ddetr_lite.datasets.findings import KINDS, grouped

    if not findings:
        print("Nothing is wrong.")
    for kind, members in grouped(findings).items():
        about = KINDS[kind]
        print(f"{about.severity.upper():<8}{len(members)} × {kind}: {about.title}")
        print(f"        → {about.remedy}")
        for finding in members[:EXAMPLES]:
            print(f"        {finding.where}: {finding.message}")
        if len(members) > EXAMPLES:
            print(f"        ... and {len(members) - EXAMPLES} more, in report.json")


def _print_summary(summary: "Summary") -> None:
    """The numbers of a split, with the classes as bars."""
    import numpy as np

    crowds = f", and {summary.crowds} crowds" if summary.crowds else ""
    print(f"\n{summary.name}: {summary.pictures} pictures, {summary.objects} objects{crowds}")
    if len(summary.sizes):
        (low_h, low_w), (high_h, high_w) = summary.sizes.min(0), summary.sizes.max(0)
        short = np.median(summary.sizes.min(1))
        wide, high = (f"{a:g}" if a == b else f"{a:g}–{b:g}" for a, b in ((low_w, high_w), (low_h, high_h)))
        print(f"  pictures     {wide} px wide, {high} high, median of shorter sides {short:g}")
    if summary.pictures:
        n = summary.per_picture
        print(f"  per picture  {n.mean():.1f} objects on average, median {np.median(n):g}, at most {n.max()}")
    if len(summary.sides):
        bands = ", ".join(f"{name} {n / len(summary.sides):.0%}" for name, n in summary.bands().items())
        low, middle, high = np.quantile(summary.shares, (0.05, 0.5, 0.95))
        print(f"  sizes        {bands} (COCO's 32² and 96² px)")
        print(f"  √area        {low:.0%} to {high:.0%} of the picture's for nine of ten objects, median {middle:.0%}")
    ranked = sorted(summary.classes.items(), key=lambda item: -item[1])
    longest = max((number for _, number in ranked), default=0)
    width = min(24, max((len(name) for name, _ in ranked), default=0))
    shown = ranked if len(ranked) <= ROWS else [*ranked[: ROWS - 4], None, *ranked[-4:]]
    for entry in shown:
        if entry is None:
            print(f"  {'...':<{width}} {len(ranked) - ROWS} more")
            continue
        name, number = entry
        bar = "█" * max(1 if number else 0, round(40 * number / max(longest, 1)))
        print(f"  {name[:width]:<{width}} {number:>7} {bar}")


def _draw(result: "FolderCheck", summary: "Summary", queries: int | None, out: Path, pictures: bool) -> None:
    from ddetr_lite.plots.data_check import contact_sheet, histograms
    from ddetr_lite.plots.style import png

    (out / "histograms.png").write_bytes(png(histograms(summary, queries)))
    if pictures:
        for number, split in enumerate(result.splits):
            (out / _sheet(number, split.name)).write_bytes(png(contact_sheet(split)))


def _sheet(number: int, split: str) -> str:
    """The file of a split's contact sheet, number counting from the one that is trained on."""
    return f"contact_sheet_{split}.png" if number else "contact_sheet.png"


def _print_classes(result: "FolderCheck", summary: "Summary", row: str) -> None:
    """Category id → label → name, in columns, and what follows for the class layer."""
    from ddetr_lite.engine.advice import head_size

    rows = result.class_map()
    print(f"\nClasses: category id → label → name ({len(rows)}, labels in the order of the ids)")
    entries = [f"{category:>4} → {label:>2} → {name}" for category, label, name in rows]
    longest = max(map(len, entries))
    columns = max(1, WIDTH // (longest + 3)) if len(entries) > 12 else 1
    height = -(-len(entries) // columns)
    for line in range(height):
        print("  " + "   ".join(f"{entry:<{longest}}" for entry in entries[line::height]).rstrip())
    classes, largest = len(rows), max(category for category, _, _ in rows)
    size = head_size(row, classes)
    print(
        _wrapped(
            "head", f"{row}: {size} logits, " + ("one sigmoid a class" if size == classes else "one for “no object”")
        )
    )
    print(_wrapped("", f"(Deformable DETR {classes}: focal loss; DETR's softmax {classes + 1}: with “no object”)"))
    trap = (
        f"the official code's num_classes is the largest id + 1, which would be {largest + 1} (COCO: 91 for 80 classes)"
    )
    print(_wrapped("trap", trap))


def _print_advice(advice: "Advice") -> None:
    print("\nAdvice")
    for subject, reason in advice.reasons:
        print(_wrapped(subject, reason))
    print(f"\n{advice.command}")


def _wrapped(subject: str, text: str) -> str:
    lines = textwrap.wrap(text, WIDTH - 18)
    return "\n".join(f"  {subject if i == 0 else '':<15} {line}" for i, line in enumerate(lines))


def _facts(options: CheckOptions, summary: "Summary", classes: tuple[str, ...]) -> "DataFacts":
    """What the advice is about."""
    import numpy as np

    from ddetr_lite.engine.advice import DataFacts

    splits = (*options.split, *("train", "val")[len(options.split) :])
    facts = DataFacts(
        folder=str(options.folder),
        pictures=summary.pictures,
        most_objects=int(summary.per_picture.max(initial=0)),
        splits=(splits[0], splits[1]),
        classes=classes,
    )
    if len(summary.sizes):
        short, long = summary.sizes.min(1), summary.sizes.max(1)
        facts = dataclasses.replace(
            facts,
            short_side=float(np.median(short)),
            aspect=float(np.quantile(long / short, 0.95)),
            upright=float((summary.sizes[:, 0] > summary.sizes[:, 1]).mean()),
        )
    if len(summary.sides):
        facts = dataclasses.replace(facts, small_object=float(np.quantile(summary.sides, 0.1)))
    return facts


def _report(options: CheckOptions, result: "FolderCheck", summaries: list["Summary"], advice: "Advice | None") -> str:
    """All of it for a program to read."""
    import numpy as np

    from ddetr_lite.datasets.findings import KINDS

    def numbers(values: np.ndarray) -> dict[str, float]:
        if not len(values):
            return {}
        return dict(
            zip(
                ("min", "median", "mean", "max"),
                map(float, (values.min(), np.median(values), values.mean(), values.max())),
            )
        )

    report = {
        "folder": str(options.folder),
        "findings": [
            {"kind": f.kind, "severity": f.severity, "where": f.where, "message": f.message, "remedy": KINDS[f.kind].remedy}
            for f in result.findings
        ],
        "splits": [
            {
                "name": s.name, "pictures": s.pictures, "objects": s.objects, "crowds": s.crowds, "classes": s.classes,
                "sizes": s.bands(), "sqrt_area": numbers(s.sides), "sqrt_area_share": numbers(s.shares),
                "objects_per_picture": numbers(s.per_picture),
                "height": numbers(s.sizes[:, 0]), "width": numbers(s.sizes[:, 1]),
            }
            for s in summaries
        ],
        "classes": [{"category_id": c, "label": label, "name": name} for c, label, name in result.class_map()],
        "advice": None if advice is None else {
            "command": advice.command, "options": advice.options, "reasons": dict(advice.reasons),
        },
    }  # fmt: skip
    return json.dumps(report, indent=1, ensure_ascii=False) + "\n"
