"""`make notebooks` executes what may have changed, and touches nothing else."""

from pathlib import Path

import nbformat
import pytest
from execute_notebooks import main

TWIN = """# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 00 · Tiny

# %%
from pathlib import Path

print(Path.cwd().name, 6 * 7)

# %% tags=["nbval-ignore-output"]
print("the", "end")
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with one notebook, which is not made yet, and a package of one file."""
    for name, text in {
        "notebooks/text/00_tiny.py": TWIN,
        "notebooks/text/notes.py": "not = a twin",
        "ddetr_lite/layers/module.py": "A = 1\n",
        "data/results/run/log.jsonl": "{}\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return tmp_path


def state(root: Path) -> dict[Path, tuple[bytes, int]]:
    """Contents and times of writing: a file that was written anew with the same bytes has been touched too."""
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in root.rglob("*") if path.is_file()}


def touched(root: Path, before: dict[Path, tuple[bytes, int]]) -> set[str]:
    after = state(root)
    return {path.name for path in before | after if before.get(path) != after.get(path)}


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def said(root: Path) -> list[str]:
    """The text of every code cell's only output."""
    notebook = nbformat.read(root / "notebooks/00_tiny.ipynb", as_version=4)
    return [cell.outputs[0].text for cell in notebook.cells if cell.cell_type == "code"]


def ids(root: Path) -> list[str]:
    return [cell.id for cell in nbformat.read(root / "notebooks/00_tiny.ipynb", as_version=4).cells]


def test_executes_once_and_again_when_something_that_is_read_has_changed(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([], root) == 0
    assert said(root) == ["notebooks 42\n", "the end\n"]
    assert "executed in" in capsys.readouterr().out

    before = state(root)
    assert main([], root) == 0
    assert capsys.readouterr().out == "00_tiny: up to date\n"
    assert touched(root, before) == set()

    old_ids = ids(root)
    for name in ("ddetr_lite/layers/module.py", "data/results/run/log.jsonl"):
        (root / name).write_text("B = 2\n", encoding="utf-8")
        before = state(root)
        assert main([], root) == 0
        assert "outputs of 0 cells changed" in capsys.readouterr().out
        assert touched(root, before) == {"00_tiny.ipynb"}
        old, new = before[root / "notebooks/00_tiny.ipynb"][0], (root / "notebooks/00_tiny.ipynb").read_bytes()
        differing = [line for line in set(new.splitlines()) ^ set(old.splitlines()) if b"executed_from" not in line]
        assert differing == []

    edit(root / "notebooks/text/00_tiny.py", "6 * 7", "6*8")
    assert main([], root) == 0
    assert "outputs of 1 cells changed" in capsys.readouterr().out
    assert said(root) == ["notebooks 48\n", "the end\n"]
    assert ids(root) == old_ids
    assert "6 * 8" in (root / "notebooks/text/00_tiny.py").read_text(encoding="utf-8"), "the twin is formatted"


def test_prose_alone_is_taken_over_without_executing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([], root)
    edit(root / "notebooks/text/00_tiny.py", "Tiny", "Tiny, explained")
    capsys.readouterr()
    assert main(["00"], root) == 0
    assert "code as executed" in capsys.readouterr().out
    notebook = nbformat.read(root / "notebooks/00_tiny.ipynb", as_version=4)
    assert notebook.cells[0].source == "# 00 · Tiny, explained"
    assert said(root) == ["notebooks 42\n", "the end\n"]


def test_outputs_that_are_not_in_order_are_made_again(root: Path) -> None:
    main([], root)
    path = root / "notebooks/00_tiny.ipynb"
    whole = path.read_bytes()
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[1].update(outputs=[], execution_count=None)
    nbformat.write(notebook, path)
    assert main([], root) == 0
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("code", "why"),
    [
        ("{}['missing']", "KeyError: 'missing'"),
        ("import os; os._exit(1)", "died"),
        ("print((", "Failed to parse"),
    ],
)
def test_a_failing_cell_leaves_the_notebook_and_says_where(
    root: Path, capsys: pytest.CaptureFixture[str], code: str, why: str
) -> None:
    main([], root)
    before = (root / "notebooks/00_tiny.ipynb").read_bytes()
    edit(root / "notebooks/text/00_tiny.py", 'print("the", "end")', f"{code}  # here")
    assert main([], root) == 1
    error = capsys.readouterr().err
    assert error.startswith("00_tiny: ")
    assert why in error
    if "parse" not in why:
        assert "cell 3 of 3, In [2]:" in error
        assert "# here" in error
    assert (root / "notebooks/00_tiny.ipynb").read_bytes() == before
    assert {path.name for path in (root / "notebooks").iterdir()} == {"00_tiny.ipynb", "text"}


def test_the_authors_own_solutions_stay_out_of_the_outputs(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    part = root / "notebooks/my_parts/causal_mask.py"
    part.parent.mkdir()
    part.touch()
    assert main([], root) == 1
    assert "move it away" in capsys.readouterr().err
    assert not (root / "notebooks/00_tiny.ipynb").exists()


def test_a_name_that_is_not_there_is_refused(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["07"], root)
    assert "there are 00_tiny" in capsys.readouterr().err
