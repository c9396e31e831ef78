"""A small table that a notebook renders and a terminal can read."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """Rows of text under a head. The last line of a cell shows it: as a table in a notebook, aligned in a
    terminal.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __repr__(self) -> str:
        lines = [self.head, *self.rows]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.head))]
        return "\n".join("  ".join(cell.ljust(n) for cell, n in zip(line, widths)).rstrip() for line in lines)

    def _repr_markdown_(self) -> str:
        rule = "|".join([":--"] * len(self.head))
        body = ["|".join(cell.replace("|", "\\|") for cell in line) for line in self.rows]
        return "\n".join(f"|{line}|" for line in ["|".join(self.head), rule, *body])
