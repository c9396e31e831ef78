"""The log of a run: one JSON object a line, in the order of the steps, the same after a crash and a resume."""

import json
from pathlib import Path
from typing import Any

from ddetr_lite.writing import write_bytes


class RunLog:
    """Lines such as {"kind": "train", "step": 40, ...}; kinds are "start", "forecast", "train", "skip",
    "diverged", "evaluate" and "watch".

    Every line is flushed at once. A run that goes on from step s first drops the lines beyond s (`rewind`).
    """

    def __init__(self, path: Path):
        self.path = path

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Append a line; numbers are rounded to six digits."""
        rounded = {k: float(f"{v:.6g}") if isinstance(v, float) else v for k, v in values.items()}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"kind": kind, "step": step, **rounded}) + "\n")

    def rewind(self, step: int, evaluated: int) -> None:
        """Drop lines of later steps, of evaluations later than step `evaluated`, and a last line that a crash cut off."""
        if not self.path.exists():
            return
        last = {"evaluate": evaluated, "watch": evaluated}
        kept = [json.dumps(line) + "\n" for line in read_log(self.path) if line["step"] <= last.get(line["kind"], step)]
        write_bytes(self.path, "".join(kept).encode())


def read_log(path: str | Path) -> list[dict[str, Any]]:
    """All whole lines of a log: a crash can have cut off the last one, which is left out.

    Raises ValueError for another one that is no JSON: a run that goes on drops what was cut off before it writes (`rewind`), so
    somebody has changed the file.
    """
    texts, lines = Path(path).read_text(encoding="utf-8").splitlines(), []
    for number, text in enumerate(texts, 1):
        if not text.strip():
            continue
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError as error:
            if number < len(texts):
                raise ValueError(f"{path}: line {number} is no JSON ({error}): correct or remove it") from error
    return lines
