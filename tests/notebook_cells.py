"""Reading the course's notebooks: which there are, and where their exercises stand."""

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
IGNORED = "nbval-ignore-output"


@dataclass(frozen=True)
class Block:
    """An exercise as it stands in a notebook: cells by index, and the solution's code."""

    name: str
    header: str
    stub: int
    hint: str
    check: int
    solution: str


@cache
def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


def tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def code_cells(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def exercises(path: Path) -> list[Block]:
    """The exercises of a notebook, in order. An AssertionError says what one lacks."""
    cells = read(path).cells
    stubs = [i for i, cell in enumerate(cells) if cell.cell_type == "code" and "exercise" in tags(cell)]
    blocks = []
    for stub in stubs:
        found = re.search(r"^def (\w+)", cells[stub].source, re.M)
        assert found, f"{path.name}: the exercise's cell {stub} defines no function"
        name = found[1]
        end = next((i for i in range(stub + 1, len(cells)) if cells[i].source.startswith("## ")), len(cells))
        end = min([end, *(i for i in stubs if i > stub)])
        hint = solution = ""
        check = -1
        for i in range(stub + 1, end):
            text = cells[i].source
            if cells[i].cell_type == "code" and check < 0 and f'("{name}", {name})' in text:
                check = i
            elif "<summary>Hint</summary>" in text:
                hint = hint or text
            elif "<summary>Solution</summary>" in text and not solution:
                code = re.search(r"```python\n(.*?)```", text, re.S)
                assert code, f"{path.name}: the solution of {name} has no python block"
                solution = code[1]
        assert hint, f"{path.name}: {name} has no hint"
        assert check > 0, f"{path.name}: {name} has no check"
        assert solution, f"{path.name}: {name} has no solution"
        blocks.append(Block(name, cells[stub - 1].source, stub, hint, check, solution))
    return blocks


def text_outputs(cell: NotebookNode) -> list[str]:
    """What a cell says in text, the chunks of a stream joined: all that nbval compares."""
    found: list[str] = []
    streamed = False
    for output in cell.outputs:
        if output.output_type == "stream":
            if streamed:
                found[-1] += output.text
            else:
                found.append(output.text)
        else:
            data = output.get("data", {})
            found += [data[kind] for kind in sorted(data) if kind.startswith("text/")]
        streamed = output.output_type == "stream"
    return found
