"""The blocks of `docs/library.md` run as they stand, one after another."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "library.md"
BLOCK = re.compile(r"(?ms)^```python\n(.*?)^```")


def blocks() -> list[tuple[int, str]]:
    """The line on which each block begins, and its code."""
    text = PAGE.read_text(encoding="utf-8")
    return [(text.count("\n", 0, found.start(1)) + 1, found[1]) for found in BLOCK.finditer(text)]


def test_the_blocks_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "checkpoints").symlink_to(ROOT / "data" / "checkpoints")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names: dict[str, Any] = {"__name__": "page"}
    for line, code in blocks():
        # Padded with empty lines, so that an error names the line of the page.
        exec(compile("\n" * (line - 1) + code, str(PAGE), "exec"), names)
    assert {path.name for path in (tmp_path / "runs" / "library" / "first").iterdir()} >= {"best.pt", "log.jsonl"}
    assert names["metrics"]["AP"] >= 0
    assert names["output"].shape == (2, 50, 256)


def test_every_section_has_a_block_and_lines_are_short() -> None:
    sections = PAGE.read_text(encoding="utf-8").split("\n## ")[1:]
    assert all(BLOCK.search(section) for section in sections)
    assert len(blocks()) == len(sections) == 10
    assert max(len(line) for _, code in blocks() for line in code.splitlines()) <= 128
