"""Every number that the prose quotes is held to where it comes from (tests/claims.py says which numbers, and how)."""

import json
from pathlib import Path

import nbformat
import pytest
from claims import Entry, Page, all_pages, fits, notebook, numbers_in, problems, read_claims, readme

TEXT = "After training:\nAP 0.754 on\n300 pictures.\n"
CLAIM: Entry = {
    "page": "README.md",
    "text": "AP 0.754 on 300 pictures",
    "numbers": [{"shown": "0.754", "run": "a-run", "value": "last.AP"}],
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A project with a run, a benchmark, a table and a text among its results."""
    results = tmp_path / "data/results"
    (results / "a-run").mkdir(parents=True)
    write_log(tmp_path, AP=0.75412)
    rows = [{"ours": 10.0, "theirs": 58.0}, {"ours": 10.0, "theirs": 25.0}, {"ours": 20.0, "theirs": 62.0}]
    (results / "speed.json").write_text(json.dumps({"rows": rows}))
    (results / "table.md").write_text("| a | 0.1 |\n| b | 0.2 |\n")
    (results / "search.txt").write_text("lr 0.1: AP 0.204\nlr 0.2: AP 0.331\n$ it said\n24 of 24 steps, 3 s\n")
    return tmp_path


def write_log(root: Path, **measured: float) -> None:
    """The log of the run, whose last evaluation has these values."""
    lines = [
        {"kind": "start", "step": 0, "pictures": 4000, "recipe": {"train": {"lr": 0.002}}},
        {"kind": "evaluate", "step": 9, "epoch": 6, "train_seconds": 170.5, "AP": 0.5} | measured,
    ]
    if not measured:
        lines.pop()
    (root / "data/results/a-run/log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def said(root: Path, text: str, *claims: Entry, other: tuple[Entry, ...] = ()) -> str:
    """What is found wrong with a README."""
    return "\n".join(problems([readme("README.md", text)], {"claim": list(claims), "other": list(other)}, root))


def claim(text: str, **source: object) -> Entry:
    """A claim about the first number of a text."""
    first = numbers_in(readme("", text).parts[0])[0]
    return {"page": "README.md", "text": text, "numbers": [{"shown": first.digits} | source]}


def test_every_number_has_its_source() -> None:
    found = problems(all_pages(), read_claims())
    assert not found, "\n" + "\n".join(found)


def test_a_number_that_agrees_passes_however_its_line_is_broken(root: Path) -> None:
    assert said(root, TEXT, CLAIM) == ""
    assert said(root, TEXT.replace("on\n", "on\n> "), CLAIM) == ""


def test_a_changed_digit_fails(root: Path) -> None:
    found = said(root, TEXT.replace("0.754", "0.755"), CLAIM)
    assert "does not say this any more" in found
    assert "README.md:2: 0.755 has no source" in found


def test_a_changed_or_removed_value_of_a_log_fails(root: Path) -> None:
    write_log(root, AP=0.7546)
    assert "the page says 0.754, its source 0.7546" in said(root, TEXT, CLAIM)
    write_log(root)
    assert "gives nothing" in said(root, TEXT, CLAIM)
    (root / "data/results/a-run/log.jsonl").unlink()
    assert "holds no log.jsonl" in said(root, TEXT, CLAIM)


def test_a_new_number_fails_and_the_message_says_what_to_do(root: Path) -> None:
    found = said(root, TEXT + "\nIt took 171 s on it.\n", CLAIM)
    assert "README.md:5: 171 has no source, in 'It took 171 s on it.'" in found
    for line in ('page = "README.md"', 'text = "It took 171 s on it."', 'shown = "171"', "data/results/claims.toml"):
        assert line in found
    assert "0.754 has" not in found


def test_a_new_number_inside_of_a_claimed_text_fails(root: Path) -> None:
    wider = CLAIM | {"text": "AP 0.754 (0.9) on 300 pictures"}
    assert "0.9 has no source" in said(root, TEXT.replace("0.754", "0.754 (0.9)"), wider)


def test_a_claim_whose_text_is_gone_fails(root: Path) -> None:
    assert "does not say this any more" in said(root, "Nothing.", CLAIM)


def test_an_entry_that_nobody_needs_fails(root: Path) -> None:
    reason: Entry = {"page": "README.md", "text": "AP 0.754", "reason": "paper: of somebody"}
    assert "nothing needs this entry" in said(root, TEXT, CLAIM, CLAIM | {"text": "AP 0.754"})
    assert "nothing needs this entry" in said(root, TEXT, CLAIM, other=(reason,))
    assert said(root, TEXT, other=(reason,)) == ""
    whole = reason | {"text": "300 pictures"}
    assert "nothing needs this entry" in said(root, TEXT, CLAIM, other=(whole,)), "it has no measured unit"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"page": "elsewhere.md"}, "page is none of README.md"),
        (
            {"run": "a-run", "json": "speed.json", "numbers": [{"shown": "0.754", "value": "last.AP"}]},
            "wants one source",
        ),
        ({"numbers": [{"shown": "0.754", "valeu": "last.AP", "run": "a-run"}]}, "unknown key valeu"),
        ({"numbers": [{"shown": "0.754", "run": "a-run", "value": "last.AP51"}]}, "KeyError: 'AP51'"),
        ({"numbers": [{"value": "last.AP"}]}, "KeyError: 'shown'"),
        ({"numbers": CLAIM["numbers"] * 2}, "0.754 does not stand in the text, or not in this order"),
        ({"table": "table.md"}, "wants one of numbers, table and quoted_from"),
        ({"why": "?"}, "unknown key why"),
    ],
)
def test_a_mistake_in_an_entry_is_named(root: Path, changes: Entry, message: str) -> None:
    assert message in said(root, TEXT, CLAIM | changes)


@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("171 s", {"run": "a-run", "value": "seconds"}),
        ("three minutes", {"run": "a-run", "value": "seconds", "divide_by": 60}),
        ("4,000 pictures", {"run": "a-run", "value": "start.pictures"}),
        ("2e-3", {"run": "a-run", "value": "start.recipe.train.lr"}),
        ("6 epochs", {"run": "a-run", "value": "evaluations.0.epoch"}),
        ("5.8 times", {"json": "speed.json", "value": "rows.0.theirs", "ratio_to": "rows.0.ours"}),
        ("2.5 times", {"json": "speed.json", "value": "rows.1:.theirs", "ratio_to": "rows.1:.ours", "of": "least"}),
        ("3.1 times", {"json": "speed.json", "value": "rows.1:.theirs", "ratio_to": "rows.1:.ours", "of": "greatest"}),
        ("AP 0.20", {"file": "search.txt", "pattern": "lr 0.1: AP (.*)"}),
    ],
)
def test_where_numbers_can_come_from(root: Path, text: str, source: Entry) -> None:
    assert said(root, text, claim(text, **source)) == ""


@pytest.mark.parametrize(
    ("digits", "value", "fit"),
    [
        ("0.754", 0.7544, True),
        ("0.754", 0.7546, False),
        ("0.23", 0.225, True),
        ("0.22", 0.225, True),
        ("1,780", 1780.4, True),
        ("3e-3", 0.0031, True),
        ("3e-3", 0.004, False),
        ("three", 2.6, True),
        ("three", 2.4, False),
    ],
)
def test_rounding(digits: str, value: float, fit: bool) -> None:
    """Half may go up or down."""
    assert fits(digits, value) == fit


def test_a_pattern_that_finds_several_values_fails(root: Path) -> None:
    assert "not one value" in said(root, "AP 0.20", claim("AP 0.20", file="search.txt", pattern="AP (.*)"))


def test_a_table_and_a_quotation_count_as_a_whole(root: Path) -> None:
    table = {"page": "README.md", "table": "table.md"}
    assert said(root, "Results:\n\n| a | 0.1 |\n| b | 0.2 |\n", table) == ""
    found = said(root, "| a | 0.1 |\n| b | 0.3 |\n", table)
    assert "does not say this any more" in found
    assert "0.3 has no source" in found
    quotation = {"page": "README.md", "text": "24 of 24 steps, 3 s", "quoted_from": "search.txt"}
    assert said(root, "It ends: 24 of 24 steps,\n3 s.", quotation) == ""
    assert "search.txt does not say this" in said(
        root, "24 of 24 steps, 4 s", quotation | {"text": "24 of 24 steps, 4 s"}
    )


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("AP 0.754, AP50 0.9, within 1e-5.", ["0.754", "0.9", "1e-5"]),
        ("171 s, 50 minutes, 22 epochs, 15 %, 840ms, 6 GB, 2× as fast", ["171", "50", "22", "15", "840", "6", "2"]),
        ("3x, 3 x as fast, 12h, 5 min, 15 percent, 30 fps, 4-fold", ["3", "3", "12", "5", "15", "30", "4"]),
        ("about three minutes; Six epochs; one run, two cores", ["three", "Six"]),
        ("300 pictures of 256 × 256, width 64, float16, ResNet-18, 2026-11-25, 3+3 layers", []),
        ("torch 2.15.0", []),
        ("## 7.1 A heading\n\n[text](https://example.org/1.5) https://example.org/2.5 <img width=1.5>", []),
        ("`muon_lr` 0.1, `--lr 0.2`, `ddetr-lite train shapes --lr 0.3`, `in 840.77s`", ["0.1", "840.77"]),
        ("```\nddetr-lite train \\\n   --lr 0.1\nepoch 1: AP 0.2\n```", ["0.2"]),
        ("```python\nx = 0.1\n```\nIt is 0.2.", ["0.2"]),
    ],
)
def test_which_numbers_of_a_readme_need_a_source(text: str, wanted: list[str]) -> None:
    assert [number.digits for number in numbers_in(readme("README.md", text).parts[0]) if number.open] == wanted


def page_of(prose: str, code: str, output: str = "", elsewhere: str = "") -> Page:
    """A notebook with a section of prose and code, and another one."""
    v4 = nbformat.v4
    cells = [
        v4.new_markdown_cell(f"## 1. A section\n\n{prose}"),
        v4.new_code_cell(code, outputs=[v4.new_output("stream", text=output)]),
        v4.new_markdown_cell("## 2. Another"),
        v4.new_code_cell(elsewhere),
    ]
    return notebook(
        "notebooks/99_new.ipynb", v4.new_notebook(cells=cells), f"# %% [markdown]\n# ## 1. A section\n#\n# {prose}\n"
    )


@pytest.mark.parametrize(
    ("page", "open_ones"),
    [
        (page_of("It is 0.33.", "print(0.33)"), []),
        (page_of("It is 0.33.", "print(x)", "IoU 0.3333"), []),
        (page_of("It is 0.33.", "x  # 0.33", "IoU 0.3401, torch 3.2.2", elsewhere="x = 0.33"), ["0.33"]),
        (page_of("It is 0.5.", "print(x)", "0.4812"), ["0.5"]),
        (page_of("It took 12 seconds, `x = 0.25` and 0.75.", "print(x)", "0.75"), ["0.25"]),
    ],
)
def test_numbers_of_a_notebook_are_shown_in_their_section(page: Page, open_ones: list[str]) -> None:
    assert [number.digits for number in numbers_in(page.parts[0]) if number.open] == open_ones


def test_a_number_of_a_notebook_without_a_source_is_named_with_its_line(root: Path) -> None:
    page = page_of("The paper has 0.42.", "print(1)")
    (found, how) = problems([page], {}, root)
    assert found.startswith("notebooks/text/99_new.py:4 (cell 0 of notebooks/99_new.ipynb): 0.42 has no source")
    assert 'page = "notebooks/99_new.ipynb"' in how
    reason = {"page": page.name, "text": "The paper has 0.42", "reason": "paper: DETR"}
    assert problems([page], {"other": [reason]}, root) == []


def test_what_another_notebook_has_printed_can_be_claimed(root: Path) -> None:
    (root / "notebooks").mkdir()
    cell = nbformat.v4.new_code_cell("x", outputs=[nbformat.v4.new_output("stream", text="AP 0.42\n")])
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), root / "notebooks/98_old.ipynb")
    one = claim("AP 0.42 in 98", output_of="notebooks/98_old.ipynb", pattern="AP (.*)")
    assert said(root, "AP 0.42 in 98", one) == ""
    assert "gives nothing" in said(
        root, "AP 0.42", claim("AP 0.42", output_of="notebooks/98_old.ipynb", pattern="x (.*)")
    )


@pytest.mark.parametrize(
    ("reason", "message"),
    [
        ({"reason": "arithmetic", "numbers": [{"shown": "0.33", "is": "8 / 24"}]}, ""),
        ({"reason": "arithmetic", "numbers": [{"shown": "0.33", "is": "8 / 23"}]}, "its source 0.347826"),
        ({"reason": "arithmetic", "numbers": [{"shown": "0.33", "is": "open('x')"}]}, "cannot be calculated"),
        ({"reason": "arithmetic"}, "numbers belong to arithmetic"),
        ({"reason": "example: a number"}, ""),
        ({"reason": "example:"}, "and some words"),
        ({"reason": "because: I say so"}, "the reason is not one of"),
    ],
)
def test_reasons(root: Path, reason: Entry, message: str) -> None:
    found = said(root, "It is 8 / 24 = 0.33.", other=({"page": "README.md", "text": "8 / 24 = 0.33"} | reason,))
    assert found == "" if not message else message in found
