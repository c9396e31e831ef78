"""Which numbers the prose quotes, and where each comes from: reads data/results/claims.toml, whose head says how.

A README's numbers need a source where they are decimal (0.754, 1e-5), or whole with a unit that is measured (171 s,
50 minutes, three minutes, 22 epochs, 15 %). Links, numbers of headings, versions with two dots and commands are not looked
at; a block of code that shows an output is. In a notebook, each decimal number of a markdown cell has to be seen in the code
or the text outputs of the same section (from one `## ` to the next), with the same digits or with more of them; the others
need an entry. Signs are not compared.
"""

import io
import json
import math
import re
import tokenize
import tomllib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from nbformat import NotebookNode
from notebook_cells import NOTEBOOKS, ROOT, code_cells, read, text_outputs

from ddetr_lite.engine.run_results import read_run

Entry = dict[str, Any]

READMES = ("README.md", "docs/measurements.md", "data/README.md", "data/results/README.md")
CLAIMS = "data/results/claims.toml"
REASONS = ("arithmetic", "paper", "definition", "configuration", "version", "example")
SOURCES = ("run", "json", "file", "output_of")  # where a number can come from
CLAIM_KEYS = {"page", "text", "numbers", "table", "quoted_from", *SOURCES}
NUMBER_KEYS = {"shown", "value", "pattern", "ratio_to", "divide_by", "of", *SOURCES}
OTHER_KEYS = {"page", "text", "reason", "numbers"}

WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
UNIT = (
    r"(?:-fold|\s?(?:m?s|seconds?|min|minutes?|h|hours?|days?|times|fold|[x×](?!\s*\d)|pictures/s|pictures per second"
    r"|fps|epochs?|steps/s|%|percent|[kMGT]i?B))(?!\w)"
)
NUMBER = r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)*(?:e[-−+]?\d+)?(?:(?!\w)|(?=(?:m?s|h|x|[kMGT]i?B)\b))"
COUNTED = re.compile(rf"{NUMBER}|(?i:\b(?:{'|'.join(WORDS)})\b(?={UNIT}))")
COMMAND = r"(?:\$ |(?:ddetr-lite|git|make|conda|pip|python|jupyter|torchrun|source)\b|--\w|\S+/python\b)"


@dataclass(frozen=True)
class Part:
    """A piece of prose as it stands in a file: a README, or a markdown cell with the numbers that its section shows."""

    text: str
    file: str
    line: int = 1
    cell: str = ""
    seen: frozenset[str] | None = None  # None: a README

    def where(self, start: int) -> str:
        """File and line of a place in the text."""
        return f"{self.file}:{self.line + self.text.count(chr(10), 0, start)}{self.cell}"


@dataclass(frozen=True)
class Number:
    """A number in a piece of prose."""

    digits: str
    start: int
    end: int
    open: bool  # it needs a claim, or a reason why it has none


@dataclass(frozen=True)
class Page:
    """A README, or the prose of a notebook."""

    name: str
    parts: list[Part]


def amount(digits: str) -> float:
    """1,780 → 1780.0; three → 3.0."""
    word = digits.lower()
    return float(WORDS.index(word)) if word in WORDS else float(digits.replace(",", "").replace("−", "-"))


def fits(digits: str, value: float) -> bool:
    """Is `digits` what the value gives when it is rounded to so many places?"""
    form = re.fullmatch(r"[\d,]+(?:\.(\d+))?(?:e([-+]?\d+))?", digits.replace("−", "-"))
    places = len(form[1] or "") - int(form[2] or 0) if form else 0
    return abs(amount(digits) - abs(value)) <= 0.5 * 10.0**-places * (1 + 1e-9)


def without_code(text: str) -> str:
    """The text with blanks where numbers are not quoted: commands, code, links, tags, numbers of headings and sections."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"\S", " ", match[0])

    def fenced(match: re.Match[str]) -> str:
        if match[1] not in ("", "text", "console"):
            return blank(match)
        return re.sub(rf"(?m)^ *{COMMAND}(?:.*\\\n)*.*", blank, match[0])

    text = re.sub(r"(?ms)^ *```(\S*)[^\n]*\n.*?^ *```", fenced, text)
    return re.sub(
        rf"`{COMMAND}[^`]*`|\bsection [\d.]+\d|\]\([^)]*\)|https?://\S+|<!--(?s:.*?)-->|</?\w[^>\n]*>|(?m:^#+ [\d.]+)",
        blank,
        text,
    )


@cache
def numbers_in(part: Part) -> list[Number]:
    """Every number of a piece of prose, and whether it stands there without a source."""
    text = without_code(part.text)
    found = []
    for match in COUNTED.finditer(text):
        digits = match[0]
        if digits.count(".") > 1:  # a version
            continue
        decimal = "." in digits or bool(re.search(r"\de", digits))
        if part.seen is None:
            needs = decimal or re.match(UNIT, text[match.end() :]) is not None
        else:
            needs = decimal and not any(is_shown(digits, number) for number in part.seen)
        found.append(Number(digits, match.start(), match.end(), needs))
    return found


def is_shown(digits: str, output: str) -> bool:
    """The same digits, or an output with more of them; 0.5 is not taken for a rounded 0.48, for too many would be."""
    if digits == output:
        return True
    places = len(digits.partition(".")[2])
    longer = (
        places >= 2 and output.count(".") == 1 and len(output.partition(".")[2]) > places and "e" not in digits + output
    )
    return longer and fits(digits, amount(output))


def readme(name: str, text: str) -> Page:
    return Page(name, [Part(text, name)])


def notebook(name: str, book: NotebookNode, twin: str = "") -> Page:
    """A notebook's markdown cells. `twin`: its text, in which prose is edited, so that messages can name a line of it."""
    sections: list[list[tuple[int, NotebookNode]]] = [[]]
    for index, cell in enumerate(book.cells):
        if cell.cell_type == "markdown" and re.search(r"(?m)^## ", cell.source):
            sections.append([])
        sections[-1].append((index, cell))
    stem = Path(name).stem
    parts = []
    for section in sections:
        seen = frozenset(number for _, cell in section if cell.cell_type == "code" for number in shown_by(cell))
        for index, cell in section:
            if cell.cell_type == "markdown":
                at = twin.find("\n".join(f"# {line}".rstrip() for line in cell.source.splitlines()))
                file = f"notebooks/text/{stem}.py" if at >= 0 else name
                line = twin.count("\n", 0, at) + 1 if at >= 0 else 1
                parts.append(Part(cell.source, file, line, f" (cell {index} of {name})", seen))
    return Page(name, parts)


def shown_by(cell: NotebookNode) -> Iterator[str]:
    """The numbers in a cell's code, without its comments, and in what it printed."""
    for token in tokenize.generate_tokens(io.StringIO(cell.source).readline):
        if token.type != tokenize.COMMENT:
            yield from re.findall(NUMBER, token.string)
    for text in text_outputs(cell):
        yield from re.findall(NUMBER, text)


def all_pages() -> list[Page]:
    pages = [readme(name, (ROOT / name).read_text(encoding="utf-8")) for name in READMES]
    for path in NOTEBOOKS:
        twin = path.parent / "text" / f"{path.stem}.py"
        pages.append(notebook(f"notebooks/{path.name}", read(path), twin.read_text(encoding="utf-8")))
    return pages


def at_path(value: Any, path: str) -> Any:
    """`last.AP` of a run, `rows.2:.peers` of a JSON file: names and indices, and slices, which give a list."""
    key, _, rest = path.partition(".")
    if ":" in key:
        if not isinstance(value, list):
            raise ValueError(f"{key} wants a list")
        start, stop = (int(end) if end else None for end in key.split(":"))
        return [at_path(item, rest) if rest else item for item in value[start:stop]]
    if isinstance(value, list):
        value = value[int(key)]
    elif isinstance(value, dict):
        value = value[key]
    else:
        value = getattr(value, key)
    return at_path(value, rest) if rest else value


def value_of(source: Entry, root: Path) -> float:
    """The value that a source names. Raises ValueError, and says what is missing."""
    try:
        value = looked_up(source, root, source.get("value", ""))
        if "ratio_to" in source:
            below = looked_up(source, root, source["ratio_to"])
            pairs = zip(value, below, strict=True) if isinstance(value, list) else [(value, below)]
            ratios = [a / b for a, b in pairs]
            value = ratios if isinstance(value, list) else ratios[0]
        if "of" in source:
            value = {"least": min, "greatest": max}[source["of"]](value)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{value!r} is no number")
        return value / source.get("divide_by", 1)
    except (OSError, LookupError, ValueError, TypeError, AttributeError, ZeroDivisionError, re.error) as error:
        raise ValueError(f"{source} gives nothing: {type(error).__name__}: {error}") from error


def looked_up(source: Entry, root: Path, path: str) -> Any:
    """What stands at a path of a source's file: numbers of runs and JSON files as they are, those of texts by a pattern."""
    results = root / "data/results"
    if "run" in source:
        return at_path(read_run(results / source["run"]), path)
    if "json" in source:
        return at_path(json.loads((results / source["json"]).read_text(encoding="utf-8")), path)
    if "file" in source:
        text = (results / source["file"]).read_text(encoding="utf-8")
    else:
        text = "\n".join(text for cell in code_cells(read(root / source["output_of"])) for text in text_outputs(cell))
    values = {amount(match) for match in re.findall(source["pattern"], text)}
    if len(values) != 1:
        raise ValueError(f"the pattern finds {sorted(values) or 'nothing'}, and not one value")
    return values.pop()


def places(part: Part, text: str) -> list[tuple[int, int]]:
    """Where a text stands, however it is broken into lines."""
    pattern = r"\s+(?:> ?)?".join(re.escape(word) for word in text.split())
    return [match.span() for match in re.finditer(pattern, part.text)] if pattern else []


def problems(pages: list[Page], book: dict[str, list[Entry]], root: Path = ROOT) -> list[str]:
    """What is wrong with the numbers of these pages, a line each; nothing where every number has its source."""
    found = [f"{CLAIMS}: [[{kind}]] is neither claim nor other" for kind in sorted(book.keys() - {"claim", "other"})]
    by_name = {page.name: page for page in pages}
    covered: set[tuple[Part, Number]] = set()
    for kind, check in (("claim", check_claim), ("other", check_other)):
        for entry in book.get(kind, []):
            name = entry.get("page", "")
            if name not in by_name:
                wrong = [f"page is none of {', '.join(by_name)}"]
            else:
                try:
                    wrong = check(entry, root)
                    inside, gone = covers(entry, by_name[name], root)
                    wrong += gone
                    new = {at for at in inside if kind == "claim" or at[1].open} - covered
                    covered |= set(inside)
                    if not new and not wrong:
                        wrong = ["nothing needs this entry: take it away"]
                except (OSError, LookupError, TypeError, AttributeError) as error:
                    wrong = [f"{type(error).__name__}: {error}"]
            said = str(entry.get("text", entry.get("table", "")))
            found += [f"{CLAIMS}: [[{kind}]] {said[:70]!r} of {name}: {line}" for line in wrong]

    bare = [(page, part, number) for page in pages for part in page.parts for number in numbers_in(part) if number.open]
    bare = [(page, part, number) for page, part, number in bare if (part, number) not in covered]
    found += [f"{part.where(n.start)}: {n.digits} has no source, in {around(part, n)!r}" for _, part, n in bare]
    if bare:
        page, part, number = bare[0]
        text = json.dumps(around(part, number), ensure_ascii=False)
        found.append(HOW.format(claims=CLAIMS, page=page.name, text=text, shown=number.digits))
    return found


def covers(entry: Entry, page: Page, root: Path) -> tuple[list[tuple[Part, Number]], list[str]]:
    """The numbers of a page that an entry is about, and what of the entry the page does not say."""
    text = (root / "data/results" / entry["table"]).read_text(encoding="utf-8") if "table" in entry else entry["text"]
    spans = [(part, *span) for part in page.parts for span in places(part, text)]
    if not spans:
        return [], ["the page does not say this any more: change the entry, or take it away"]
    found: list[tuple[Part, Number]] = []
    gone: list[str] = []
    for part, start, end in spans:
        inside = [number for number in numbers_in(part) if start <= number.start and number.end <= end]
        if "numbers" in entry:
            inside, missing = in_order(inside, [number["shown"] for number in entry["numbers"]])
            gone += [f"{shown} does not stand in the text, or not in this order" for shown in missing]
        found += [(part, number) for number in inside]
    return found, gone


HOW = """What to do: where the number was measured, add to {claims}

[[claim]]
page = "{page}"
text = {text}
numbers = [{{ shown = "{shown}", run = "a folder of data/results", value = "last.AP" }}]

and where it was not, [[other]] with page, text and a reason. The head of that file says what else it can hold. In a notebook a
cell of the same section may show the number instead."""


def around(part: Part, number: Number) -> str:
    """A number with a few words of its line, to be found by."""
    before = part.text[: number.start].rpartition("\n")[2]
    after = part.text[number.end :].partition("\n")[0]
    first = [match.start() for match in re.finditer(r"\S+", before)][-4:]
    last = [match.end() for match in re.finditer(r"\S+", after)][:3]
    return (before[first[0] :] if first else "") + number.digits + (after[: last[-1]] if last else "")


def in_order(numbers: list[Number], shown: list[str]) -> tuple[list[Number], list[str]]:
    """The numbers that a list names, each the next with these digits, and what of the list is not there."""
    found: list[Number] = []
    missing: list[str] = []
    for digits in shown:
        after = found[-1].start if found else -1
        number = next((n for n in numbers if n.start > after and n.digits == digits), None)
        if number:
            found.append(number)
        else:
            missing.append(digits)
    return found, missing


def check_claim(entry: Entry, root: Path) -> list[str]:
    """What is wrong with a claim by itself: its keys, and each number against its source."""
    found = [f"unknown key {key}" for key in entry.keys() - CLAIM_KEYS]
    if sum(key in entry for key in ("numbers", "table", "quoted_from")) != 1:
        found.append("wants one of numbers, table and quoted_from")
    if "quoted_from" in entry:
        source = Part((root / "data/results" / entry["quoted_from"]).read_text(encoding="utf-8"), entry["quoted_from"])
        if not places(source, entry["text"]):
            found.append(f"{entry['quoted_from']} does not say this")
    for number in entry.get("numbers", []):
        own = any(kind in number for kind in SOURCES)
        source_of = number if own else number | {kind: entry[kind] for kind in SOURCES if kind in entry}
        found += [f"unknown key {key} of a number" for key in number.keys() - NUMBER_KEYS]
        if sum(kind in source_of for kind in SOURCES) != 1:
            found.append(f"{number['shown']} wants one source of {', '.join(SOURCES)}")
            continue
        found += wrong_value(number["shown"], value_of, source_of, root)
    return found


def check_other(entry: Entry, root: Path) -> list[str]:
    """What is wrong with a reason by itself; arithmetic is done again."""
    found = [f"unknown key {key}" for key in entry.keys() - OTHER_KEYS]
    kind, _, why = entry["reason"].partition(":")
    if kind not in REASONS or (kind != "arithmetic" and not why.strip()):
        found.append(
            f"the reason is not one of {', '.join(REASONS)}, with a colon and some words (arithmetic: with numbers)"
        )
    if ("numbers" in entry) != (kind == "arithmetic"):
        found.append("numbers belong to arithmetic, and to nothing else")
    elif kind == "arithmetic":
        for number in entry["numbers"]:
            found += wrong_value(number["shown"], calculated, number["is"])
    return found


def calculated(expression: str) -> float:
    """`8 / 24`, `sqrt(64)`, `log(9)`: Python's operators and the functions of `math`."""
    try:
        return float(eval(expression, {"__builtins__": {}}, vars(math)))
    except Exception as error:
        raise ValueError(f"{expression} cannot be calculated: {error}") from error


def wrong_value(shown: str, source: Callable[..., float], *of: Any) -> list[str]:
    """What is wrong with a number, given where its value comes from."""
    try:
        value = source(*of)
        return [] if fits(shown, value) else [f"the page says {shown}, its source {value:.6g}"]
    except ValueError as error:
        return [f"{shown}: {error}"]


def read_claims(path: Path = ROOT / CLAIMS) -> dict[str, list[Entry]]:
    return tomllib.loads(path.read_text(encoding="utf-8"))
