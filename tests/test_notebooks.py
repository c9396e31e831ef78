"""What holds for every notebook of the course. nbval runs them and compares; this looks at what is stored."""

import copy
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import jupytext  # type: ignore[import-untyped]
import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from notebook_cells import IGNORED, NOTEBOOKS, ROOT, code_cells, exercises, read, tags, text_outputs
from notebook_names import needed_by

from ddetr_lite.course.registry import EXERCISES

PLANNED = {
    "00_start_here",
    "01_self_attention",
    "02_multi_head_attention",
    "03_positional_encoding",
    "04_transformer",
    "05_hungarian_loss",
    "06_detr",
    "07_deformable_attention",
    "08_multi_scale_deformable_attention",
    "09_deformable_detr",
    "10_convergence_and_ablations",
    "11_train_on_coco",
    "12_fast_kernels",
    "13_what_came_next",
}
LARGEST = 1_500_000  # bytes of a notebook file

every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def test_there_are_notebooks_and_all_are_planned() -> None:
    assert NOTEBOOKS
    assert {path.stem for path in NOTEBOOKS} <= PLANNED


@every_notebook
def test_executed_in_order_and_without_errors(path: Path) -> None:
    cells = code_cells(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        for output in cell.outputs:
            assert output.output_type != "error", cell.source
            assert output.get("name") != "stderr", f"{output.text}\n{cell.source}"
            assert output.get("execution_count", cell.execution_count) == cell.execution_count


@every_notebook
def test_outputs_are_there_where_something_is_shown(path: Path) -> None:
    """nbval passes a notebook without outputs: nothing stored, nothing compared."""
    for cell in code_cells(read(path)):
        if re.search(r"(?m)^(print|plots\.show|course\.(check|use|symbols|equation_map|parts))\(", cell.source):
            assert cell.outputs, cell.source


@every_notebook
def test_no_stored_comparison_has_failed(path: Path) -> None:
    """nbval compares with what is stored, so a wrong answer that was stored once would pass for ever."""
    for cell in code_cells(read(path)):
        for line in "\n".join(text_outputs(cell)).splitlines():
            if re.search(r"within \d|same as|equal to|= (torch|loop)", line):
                assert "False" not in line, f"{line}\n{cell.source}"


@every_notebook
def test_no_trace_of_a_machine(path: Path) -> None:
    notebook = copy.deepcopy(read(path))
    for cell in code_cells(notebook):
        assert "execution" not in cell.metadata, "strip the timings: record_timing=False"
        for output in cell.outputs:
            output.get("data", {}).pop("image/png", None)
    text = json.dumps(notebook, ensure_ascii=False)
    traces = r"(?:/(?:home|root|work|tmp|Users)/|[A-Z]:\\\\|site-packages|ipykernel_\d|0x[0-9a-f]{6,})"
    assert re.findall(rf".{{0,40}}{traces}.{{0,40}}", text) == []
    assert notebook.metadata.kernelspec.name == "python3"


@every_notebook
def test_size_and_cell_ids(path: Path) -> None:
    assert path.stat().st_size < LARGEST
    ids = [cell.id for cell in read(path).cells]
    assert len(set(ids)) == len(ids)


@every_notebook
def test_text_twin_says_the_same(path: Path) -> None:
    twin = path.parent / "text" / f"{path.stem}.py"
    theirs = jupytext.read(twin).cells
    ours = read(path).cells
    assert [(c.cell_type, c.source, tags(c)) for c in ours] == [(c.cell_type, c.source, tags(c)) for c in theirs]


@every_notebook
def test_head_summary_and_links(path: Path) -> None:
    cells = read(path).cells
    assert cells[0].source.startswith(f"# {path.name[:2]} · ")
    head = "\n".join(cell.source for cell in cells[:3])
    for entry in ("You will be able to", "You need first", "Time", "Device"):
        assert f"**{entry}**" in head
    prose = [cell.source for cell in cells if cell.cell_type == "markdown"]
    assert any(text.startswith("## Summary") for text in prose)
    links = re.findall(r"\]\(([^)#]+)", "\n".join(prose))
    for link in links:
        known = Path(link).stem in PLANNED and Path(link).suffix == ".ipynb"
        assert known or link.startswith("https://") or (path.parent / link).exists(), link


@every_notebook
def test_what_comes_later_is_linked(path: Path) -> None:
    """A reader who meets "as 07 does" in notebook 01 can go and look: later notebooks are named by a link."""
    number = path.stem[:2]
    for cell in read(path).cells:
        if cell.cell_type == "markdown":
            prose = re.sub(
                r"```.*?```|`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|\[[^]]*\]\([^)]*\)", "", cell.source, flags=re.DOTALL
            )
            later = [n for n in re.findall(r"(?<![\w.])0\d(?![\w.]\w)", prose) if n > number]
            assert not later, f"{later} without a link in: {cell.source}"


@every_notebook
def test_minutes_of_exercises_add_up(path: Path) -> None:
    text = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "markdown")
    said = re.search(r"\d+ minutes to read and run, (\d+) for the exercises", text)
    each = [int(minutes) for minutes in re.findall(r"(?m)^Difficulty .* about (\d+) minutes$", text)]
    assert said
    assert abs(int(said[1]) - sum(each)) <= 2, f"the head says {said[1]} minutes, the exercises {sum(each)}"


@every_notebook
def test_every_figure_has_a_description(path: Path) -> None:
    for cell in code_cells(read(path)):
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                alt = output.metadata.get("image/png", {}).get("alt", "")
                assert len(alt.split()) >= 5, f"no alt text: use plots.show(figure, alt=...)\n{cell.source}"


@every_notebook
def test_cells_are_small(path: Path) -> None:
    for cell in code_cells(read(path)):
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert len(lines) <= 18, cell.source


@every_notebook
def test_every_exercise_is_whole(path: Path) -> None:
    """Header, stub, hint, check, solution, and an entry in `course`; no entry without an exercise."""
    blocks = exercises(path)
    cells = read(path).cells
    for block in blocks:
        assert re.search(r"Difficulty [●○]{5} · Importance [●○]{5} · about \d+ minutes", block.header), block.name
        assert "raise NotImplementedError" in cells[block.stub].source
        assert IGNORED in tags(cells[block.check]), f"the check of {block.name} lacks the tag {IGNORED}"
        assert EXERCISES[block.name].notebook == path.name[:2]
    registered = [name for name, exercise in EXERCISES.items() if exercise.notebook == path.name[:2]]
    assert sorted(registered) == sorted(block.name for block in blocks)
    if not path.name.startswith("00"):
        assert 3 <= len(blocks) <= 6


UNCHANGED = ("workshop", "MODEL", "FAST", "SIZES")
"""A folder and options that many cells read, most of them to train something that no exercise looks at."""
FILES = {"11": 'command(f"data coco --site {address} --images 100 '}
"""How the cell begins that writes what exercises find in the folder."""


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    """One for all notebooks, whose variables go when the next begins: so the libraries are loaded once."""
    manager = KernelManager()
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    manager.start_kernel(env={**os.environ, "PYTHONPATH": path})
    yield manager
    manager.shutdown_kernel(now=True)


@every_notebook
def test_solutions_pass_and_change_no_other_output(path: Path, tmp_path: Path, kernel: KernelManager) -> None:
    """As a learner leaves it: from the first exercise on every check passes, and nothing else says something new.

    Of the cells before, which no solution can change and which nbval runs, only those are run that are needed.
    """
    solved = copy.deepcopy(read(path))
    blocks = exercises(path)
    for block in blocks:
        solved.cells[block.stub].source = block.solution
    sources = {i: cell.source for i, cell in enumerate(solved.cells) if cell.cell_type == "code"}
    files = FILES.get(path.name[:2], ())
    wanted = [i for i, source in sources.items() if i >= blocks[0].stub or source.startswith(files)]
    places = sorted(needed_by(wanted, sources, UNCHANGED))
    run = {place: solved.cells[place] for place in places}
    anew = nbformat.v4.new_code_cell(f"import os\nos.chdir({str(tmp_path)!r})\n%reset -f")
    solved.cells = [anew, *run.values()]
    NotebookClient(solved, kernel, timeout=600).execute()
    for block in blocks:
        said = "".join(text_outputs(run[block.check]))
        assert f"✓ {block.name}" in said, said
    for place, after in run.items():
        before = read(path).cells[place]
        if IGNORED not in tags(before):
            assert text_outputs(after) == text_outputs(before), before.source


@pytest.mark.parametrize(
    ("cells", "needed"),
    [
        (["a = 1", "b = 2", "b + 1"], {1, 2}),
        (["a = 1", "a = 2", "a"], {1, 2}),  # given anew
        (["a = 1", "a += 1", "a"], {0, 1, 2}),
        (["a = []", "a.append(1)", "len(a)"], {0, 1, 2}),  # whoever reads a variable may change it
        (["a = []", "def f():\n    a.append(1)", "f()", "a"], {0, 1, 2, 3}),  # in a function too
        (["a = []", "def f():\n    a.append(1)", "def g():\n    f()", "g()", "a"], {0, 1, 2, 3, 4}),
        (["import math", "math.pi", "math.e"], {0, 2}),  # a module, a function or a class is not changed by a reader
        (["class A: ...", "A.b = 1", "A()"], {0, 1, 2}),  # unless its attributes are
        (["def f(x):\n    return x", "x = 1", "f(2)"], {0, 2}),  # x is f's own
        (["y = 1", "def f(x):\n    return x + y", "f(2)"], {0, 1, 2}),
        (["x = 1", "def f(x=x):\n    return x", "f()"], {0, 1, 2}),
        (["z = 1", "def f(x):\n    z = x\n    return z", "f(2)"], {1, 2}),
        (["x = 5", "f = lambda x: x", "f(1)"], {1, 2}),
        (["a = [1]", "x = 5", "for x in a:\n    z = x", "z"], {0, 2, 3}),  # the loop gives its x
        (["a = [1]", "x = 5", "[x for x in a]"], {0, 2}),
        (["x = 5", "a = [x for x in (1, 2)]", "x"], {0, 2}),  # nor does it give its x
        (["import a.b as c", "from d import e as f", "c, f"], {0, 1, 2}),
        (["p = open", "with p() as q:\n    r = q", "r"], {0, 1, 2}),
        (["a = 1", "try:\n    a\nexcept ValueError:\n    b = 2", "b"], {0, 1, 2}),
        (["a = {}", "a['k'] = 1", "if a:\n    c = 1", "c"], {0, 1, 2, 3}),
    ],
)
def test_which_cells_a_cell_needs(cells: list[str], needed: set[int]) -> None:
    assert needed_by(iter([len(cells) - 1]), dict(enumerate(cells))) == needed
