"""`ddetr-lite prove-resume`."""

import tempfile
from dataclasses import dataclass
from pathlib import Path

from ddetr_lite.cli.parsing import Mistake, parse


@dataclass(frozen=True)
class ProveResumeOptions:
    """Kill a small training run twice, let it go on, and compare it bit by bit with one that was left alone."""

    model: str = "deformable-detr-two-stage"
    """A row of the paper's table."""
    workers: tuple[int, ...] = (0, 2, 4)
    """Numbers of processes that load pictures, each tried on its own."""


def prove_resume(words: list[str]) -> None:
    """Show that a run that is killed and resumed ends with the same bits as one that is not."""
    options = parse(ProveResumeOptions, words, "ddetr-lite prove-resume")
    from ddetr_lite.engine.resume_proof import prove, tiny_recipe

    with tempfile.TemporaryDirectory() as folder:
        chosen = tiny_recipe(Path(folder) / "shapes", options.model)
        print(
            "Training with augmentation, dropout, hints, gradient pieces and a running average; a minute for each line."
        )
        proofs = []
        for workers in options.workers:
            try:
                proofs.append(prove(chosen, Path(folder) / str(workers), workers))
            except RuntimeError as error:
                raise Mistake(str(error)) from error
            print(proofs[-1], flush=True)
    if not all(proof.holds for proof in proofs):
        raise Mistake(
            "a resumed run was not the same: on a GPU, atomic additions make every run differ; on a CPU, report it"
        )
