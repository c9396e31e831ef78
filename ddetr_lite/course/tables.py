"""A small table that a notebook renders and a terminal can read."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

LONG = 30  # characters of a name from which on it may break


@dataclass(frozen=True)
class Table:
    """Rows of text under a head. The last line of a cell shows it: as a table in a notebook, aligned in a terminal.

    In a cell `...` is code, $...$ is mathematics in TeX (without a bar, which would end the cell), and a new line is one in
    a notebook; all else is meant as it stands.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]

    def __repr__(self) -> str:
        lines = [[cell.replace("\n", "; ") for cell in line] for line in (self.head, *self.rows)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(self.head))]
        return "\n".join("  ".join(cell.ljust(n) for cell, n in zip(line, widths)).rstrip() for line in lines)

    def _repr_markdown_(self) -> str:
        rule = "|".join([":--"] * len(self.head))
        body = ["|".join(map(_as_markdown, line)) for line in self.rows]
        return "\n".join(f"|{line}|" for line in ["|".join(self.head), rule, *body])


def _as_markdown(cell: str) -> str:
    """Formulas have stars and underscores, which Markdown would take for emphasis. Long names may break."""
    parts = re.split(r"(`[^`]*`|\$[^$]*\$)", cell.replace("|", "\\|"))  # every other one is code or mathematics
    parts[::2] = [_breaking(_escaped(part)) for part in parts[::2]]
    parts[1::2] = [
        f"<code>{_breaking(_escaped(part[1:-1]))}</code>" if re.fullmatch(rf"`[\w.]{{{LONG},}}`", part) else part
        for part in parts[1::2]
    ]
    return "".join(parts).replace("\n", "<br>")


def _escaped(text: str) -> str:
    return re.sub(r"[\\*_~<](?!\|)", r"\\\g<0>", text)


def _breaking(text: str) -> str:
    """Names with a place to break behind each dot and underscore, where they are long enough to need one."""

    def broken(name: re.Match[str]) -> str:
        return re.sub(r"(\.|\\_)(?=.)", r"\1<wbr>", name[0])

    return re.sub(rf"(?:[^\W_]|\.|\\_){{{LONG},}}", broken, text)
