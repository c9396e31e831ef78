"""Copies for a class, and what the teacher's page says."""

import re
from pathlib import Path

import nbformat
import pytest
from notebook_cells import NOTEBOOKS, ROOT, exercises, read

from ddetr_lite.cli import main
from ddetr_lite.course.export import export

PAGE = (ROOT / "docs" / "teaching.md").read_text(encoding="utf-8")


def test_class_copies_have_everything_but_solutions_and_outputs(tmp_path: Path) -> None:
    written = export(tmp_path / "class")
    assert [path.name for path in written] == [path.name for path in NOTEBOOKS]
    for path, original in zip(written, NOTEBOOKS, strict=True):
        copy = nbformat.read(path, as_version=4)
        nbformat.validate(copy)
        assert "<summary>Solution</summary>" not in path.read_text(encoding="utf-8")
        kept = [cell for cell in read(original).cells if "<summary>Solution</summary>" not in cell.source]
        assert len(kept) == len(read(original).cells) - len(exercises(original))
        assert [(c.id, c.source, c.metadata) for c in copy.cells] == [(c.id, c.source, c.metadata) for c in kept]
        assert all(not c.outputs and c.execution_count is None for c in copy.cells if c.cell_type == "code")


def test_copies_with_solutions_and_outputs_are_the_notebooks(tmp_path: Path) -> None:
    (path,) = export(tmp_path, "solutions", ["03"], outputs=True)
    assert nbformat.read(path, as_version=4).cells == read(NOTEBOOKS[3]).cells


def test_solved_copies_have_the_solutions_in_the_exercises_cells(tmp_path: Path) -> None:
    for path, original in zip(export(tmp_path, "solved"), NOTEBOOKS, strict=True):
        cells = nbformat.read(path, as_version=4).cells
        assert len(cells) == len(read(original).cells)
        for block in exercises(original):
            assert cells[block.stub].source == block.solution.rstrip("\n")
        others = set(range(len(cells))) - {block.stub for block in exercises(original)}
        assert all(cells[i].source == read(original).cells[i].source for i in others)


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["course", "export", str(tmp_path / "class"), "--notebooks", "01", "02"]
    assert main(words) == 0
    assert f"{tmp_path / 'class'} has 2 notebooks (class)" in capsys.readouterr().out
    (tmp_path / "class" / "01_self_attention.ipynb").unlink()
    work = (tmp_path / "class" / "02_multi_head_attention.ipynb").read_bytes()
    assert main(words) == 2
    assert "02_multi_head_attention.ipynb exists, and may hold somebody's work" in capsys.readouterr().err
    assert (tmp_path / "class" / "02_multi_head_attention.ipynb").read_bytes() == work
    assert not (tmp_path / "class" / "01_self_attention.ipynb").exists()  # all or nothing
    assert main(["course", "export", str(tmp_path / "other"), "--notebooks", "21"]) == 2
    assert "there is no notebook '21'" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()
    assert main(["course", "grade"]) == 2
    assert "course 'grade' is unknown: choose export" in capsys.readouterr().err


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem[:2])
def test_teachers_page_has_the_minutes_of_the_heads(path: Path) -> None:
    head = read(path).cells[1].source
    time = re.search(r"\*\*Time\*\* \| (\d+) minutes to read and run, (\d+) for the exercises", head)
    assert time is not None
    assert f"| [{path.stem[:2]}](../notebooks/{path.name}) | {time[1]} | {time[2]} | {len(exercises(path))} |" in PAGE
