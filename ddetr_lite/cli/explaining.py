"""`ddetr-lite explain`: why AP is 0, or low."""

from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from ddetr_lite.cli.parsing import Mistake, at_least, check_folder_option, parse


@dataclass(frozen=True)
class ExplainOptions:
    """Why is AP 0, or low? Measures a run's log, data, model and detections, and names the likeliest cause."""

    run: Positional[Path]
    """The run's folder, such as runs/shapes. Nothing in it is changed."""
    folder: Path | None = None
    """Where the data is now; by default where the run found it."""
    pictures: int = 32
    """How many pictures of each split to look at."""
    steps: int = 60
    """Steps in which the model is to learn one batch by heart; 0: leave it out."""
    device: str = "auto"


def explain(words: list[str]) -> None:
    """Say why a run's AP is 0, or low, and what to do."""
    options = parse(ExplainOptions, words, "ddetr-lite explain")
    from ddetr_lite.engine.explain import explain as look

    check_folder_option(options.folder)
    at_least(options, pictures=1)
    if options.steps < 0:
        raise Mistake(f"--steps {options.steps} must not be negative")
    print("\n".join(look(options.run, options.folder, options.pictures, options.steps, options.device).lines()))
