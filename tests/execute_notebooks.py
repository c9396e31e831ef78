"""Bring the notebooks in line with their text twins, and execute those whose outputs may have changed.

    make notebooks              all of them
    make notebooks ONLY=04      one; ONLY="04 05" two

The twin, notebooks/text/NN_name.py, is the source: what it says goes into the notebook, where unchanged cells keep their ids
and outputs. A notebook remembers in its metadata the hash of what it was executed from: its own code, and every file of the
repository that this code can read. Where that hash is still right nothing is executed, and no file is touched.
"""

import argparse
import hashlib
import re
import subprocess
import sys
import time
from pathlib import Path

import jupytext  # type: ignore[import-untyped]
import nbformat
from jupytext.combine import combine_inputs_with_outputs  # type: ignore[import-untyped]
from nbclient import NotebookClient
from nbclient.exceptions import CellControlSignal, DeadKernelError
from nbformat import NotebookNode
from notebook_cells import ROOT, code_cells, tags

# All of the package for every notebook: which modules a cell reaches is not to be seen from its imports (a detector is built
# from a checkpoint), and a notebook executed in vain costs a minute, a stale output a reader's trust.
READABLE = ("ddetr_lite/**/*.py", "data/checkpoints/*.pt", "data/results/**/*.jsonl", "data/results/**/*.json")
TIMEOUT = 900  # seconds for one cell
WIDGET = "application/vnd.jupyter.widget-view+json"


class FailedError(Exception):
    """A notebook cannot be brought up to date; the message says why, for the author."""


def files_digest(root: Path) -> str:
    """One hash of all files that a notebook can read, names and contents."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in READABLE for path in root.glob(pattern)):
        content = hashlib.sha256(path.read_bytes()).hexdigest()
        digest.update(f"{path.relative_to(root).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def executed_from(notebook: NotebookNode, files: str) -> str:
    """The hash of a notebook's code and of the files: when it is the same, so are the outputs."""
    code = [(cell.source, tags(cell)) for cell in code_cells(notebook)]
    return hashlib.sha256(f"{files} {code}".encode()).hexdigest()


def is_executed(notebook: NotebookNode, files: str) -> bool:
    """By the hash; and in order from the first cell to the last, which a session in JupyterLab may have undone."""
    cells = code_cells(notebook)
    counts = [cell.execution_count for cell in cells]
    stored = notebook.metadata.get("ddetr_lite", {}).get("executed_from")
    return stored == executed_from(notebook, files) and counts == list(range(1, len(cells) + 1))


def in_line_with(twin: Path, path: Path) -> tuple[NotebookNode, bool]:
    """The notebook as its twin says it, and whether it said something else before."""
    theirs = jupytext.read(twin)
    if not path.exists():
        return theirs, True
    ours = nbformat.read(path, as_version=4)
    if [(c.cell_type, c.source, tags(c)) for c in ours.cells] == [
        (c.cell_type, c.source, tags(c)) for c in theirs.cells
    ]:
        return ours, False
    return combine_inputs_with_outputs(theirs, ours, "py:percent"), True


def format_twin(twin: Path) -> None:
    """As the code in the notebook has to be. A file that is formatted already stays as it is."""
    ruff = [sys.executable, "-m", "ruff", "format", "--config", str(ROOT / "notebooks" / "ruff.toml")]
    done = subprocess.run([*ruff, str(twin)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise FailedError(done.stderr.strip())


def execute(notebook: NotebookNode, folder: Path) -> None:
    """Run all cells in `folder`, as a learner's JupyterLab does. Raises FailedError at the first cell that fails."""
    at = 0

    def remember(cell: NotebookNode, cell_index: int) -> None:
        nonlocal at
        at = cell_index

    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=TIMEOUT,
        startup_timeout=120,
        record_timing=False,
        coalesce_streams=True,  # how prints are cut into pieces is chance
        on_cell_execute=remember,
        resources={"metadata": {"path": str(folder)}},
    )
    try:
        client.execute()
    except (CellControlSignal, DeadKernelError) as error:
        cell = notebook.cells[at]
        number = [c is cell for c in code_cells(notebook)].index(True) + 1
        traces = ["\n".join(out.traceback) for out in cell.outputs if out.output_type == "error"]
        why = re.sub(r"\x1b\[[\d;]*m", "", traces[-1]) if traces else str(error)
        raise FailedError(f"cell {at + 1} of {len(notebook.cells)}, In [{number}]:\n\n{cell.source}\n\n{why}") from None
    notebook.metadata.pop("widgets", None)  # a second copy of each figure; sliders live only while the notebook runs
    for cell in code_cells(notebook):
        cell.metadata.pop("execution", None)  # times that JupyterLab has left
        for output in cell.outputs:
            if WIDGET in output.get("data", {}):
                output.data = {"text/plain": "[sliders: run this cell, and move them]"}


def write(notebook: NotebookNode, path: Path) -> None:
    """Whole or not at all."""
    part = path.with_suffix(".part")
    part.write_text(nbformat.writes(notebook).rstrip("\n") + "\n", encoding="utf-8", newline="\n")
    part.replace(path)


def bring_up_to_date(twin: Path, root: Path, files: str) -> str:
    """Format the twin, take over what it says, execute if need be. Returns what was done; FailedError writes nothing."""
    path = root / "notebooks" / f"{twin.stem}.ipynb"
    format_twin(twin)
    notebook, edited = in_line_with(twin, path)
    if is_executed(notebook, files):
        if not edited:
            return "up to date"
        write(notebook, path)
        return "text taken over, code as executed"
    if any((path.parent / "my_parts").glob("*.py")):  # `course.restore()` would run the author's solutions
        raise FailedError("notebooks/my_parts holds solved exercises, which change the outputs: move it away")
    begin = time.monotonic()
    before = [cell.get("outputs") for cell in notebook.cells]
    notebook.metadata.setdefault("ddetr_lite", {})["executed_from"] = executed_from(notebook, files)
    execute(notebook, path.parent)
    write(notebook, path)
    changed = sum(outputs != cell.get("outputs") for outputs, cell in zip(before, notebook.cells, strict=True))
    return f"executed in {time.monotonic() - begin:.0f} s, outputs of {changed} cells changed"


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description="Execute the notebooks whose outputs may have changed.")
    parser.add_argument("only", nargs="*", help="how names begin, for example 04; all notebooks if none is given")
    only = parser.parse_args(arguments).only
    twins = sorted((root / "notebooks" / "text").glob("[0-9][0-9]_*.py"))
    for name in only:
        if not any(twin.stem.startswith(name) for twin in twins):
            parser.error(f"no file notebooks/text/{name}*.py: there are {', '.join(twin.stem for twin in twins)}")
    files, failed = files_digest(root), False
    for twin in twins:
        if not only or twin.stem.startswith(tuple(only)):
            try:
                print(f"{twin.stem}: {bring_up_to_date(twin, root, files)}", flush=True)
            except FailedError as error:
                failed = True
                print(f"{twin.stem}: {error}\n{twin.stem}: failed, the stored notebook is as it was", file=sys.stderr)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
