"""A step that can teach nothing is skipped: what happens to a loss or a gradient that is not finite.

Nothing here waits for a GPU: AdamW and Muon get a flag that lies there, and the CPU looks at the flags of past steps when it
writes its log.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from ddetr_lite.batching import RawBatch
from ddetr_lite.engine.distributed import World
from ddetr_lite.models.presets import Model
from ddetr_lite.set_prediction.losses import Counts
from ddetr_lite.set_prediction.matching import NotFiniteError, Target


class Losses(nn.Module):
    """A model's losses, as what `DistributedDataParallel` wraps.

    Where the matching finds NaN in the model's output, every gradient becomes NaN instead of an error: with several
    processes the others would wait for this one for ever. `problem` then says what was found, and in which picture.
    """

    def __init__(self, model: Model):
        super().__init__()
        self.model = model
        self.problem = ""

    def forward(self, images: RawBatch, targets: Sequence[Target], counts: Counts | None) -> dict[str, Tensor]:
        """As `Detector.forward` in training; {"loss": NaN} where there is nothing to match."""
        try:
            losses: dict[str, Tensor] = self.model(images, targets, counts)
        except NotFiniteError as error:
            self.problem = str(error)
            trained = [p for p in self.model.parameters() if p.requires_grad]
            return {"loss": torch.stack([(p * float("nan")).sum() for p in trained]).sum()}
        return losses


@dataclass
class SkippedStep:
    """A step without an update: which pictures it saw, and what is known about the reason."""

    step: int
    pictures: list[int]
    reason: str


@dataclass
class Guard:
    """Lets optimizers skip steps whose gradient is not finite, and tells later which."""

    place: World
    _flags: list[tuple[int, list[int], str, Tensor]] = field(default_factory=list)

    def watch(
        self, step: int, pictures: list[int], problem: str, norm: Tensor, optimizers: Sequence[torch.optim.Optimizer]
    ) -> None:
        """To be called between the gradient and the update. norm: the gradient's length, the same in every process."""
        bad = ~torch.isfinite(norm)
        for optimizer in optimizers:
            # torch's fused AdamW, as under a GradScaler, and our Muon leave everything as it is where this is 1.
            optimizer.found_inf = bad.float()  # type: ignore[attr-defined]
        self._flags.append((step, pictures, problem, bad))

    def look(self, bad_steps: int) -> tuple[list[SkippedStep], int]:
        """The steps since the last look that were skipped, and how many in a row have been by now.

        bad_steps: how many in a row had been at the last look. Every process calls this at the same steps.
        """
        flags, self._flags = self._flags, []
        if not flags:
            return [], bad_steps
        bad = torch.stack([flag for *_, flag in flags]).tolist()
        skipped = []
        for (step, pictures, problem, _), is_bad in zip(flags, bad, strict=True):
            bad_steps = bad_steps + 1 if is_bad else 0
            if is_bad:
                known = self.place.gather((pictures, problem))
                reason = next((p for _, p in known if p), "the gradient is not finite")
                skipped.append(SkippedStep(step, [i for ids, _ in known for i in ids], reason))
        return skipped, bad_steps
