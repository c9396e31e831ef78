"""A step of training through the Triton kernels, on a chip or, in their interpreter, on a pretended one."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from pretend_gpu import pretend_gpu
from test_pretend_gpu import CASES, learn

from ddetr_lite.kernels import triton

pytestmark = pytest.mark.skipif(triton is None, reason="needs a GPU, or TRITON_INTERPRET=1")


@pytest.mark.parametrize("case", ["own level", "two stages, hints"])
def test_a_step_is_that_of_a_cpu(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses and gradients, from pictures to the optimizers: so kernels get what layers really give them.

    One step: where a gradient is zero but for rounding, Muon makes a whole step of the rounding, and the next differs.
    A GPU draws other random numbers, and convolves in TF32 unless it is told: so nothing is drawn, and it is told.
    """
    monkeypatch.setattr("ddetr_lite.models.hints.jitter", lambda boxes: boxes * 0.9)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    taken: list[torch.Size] = []
    original = triton.attend_fused

    def counted(value: torch.Tensor, *rest: Any) -> torch.Tensor:
        taken.append(value.shape)
        output: torch.Tensor = original(value, *rest)
        return output

    monkeypatch.setattr(triton, "attend_fused", counted)
    smaller = 1 if torch.cuda.is_available() else 2  # the interpreter takes a second for a few hundred queries
    losses, norm, _ = learn("cpu", *CASES[case], smaller=smaller, steps=1, dropout=0.0)
    assert not taken
    with nullcontext() if torch.cuda.is_available() else pretend_gpu():
        other_losses, other_norm, _ = learn("cuda", *CASES[case], smaller=smaller, steps=1, dropout=0.0)
    assert taken
    assert other_losses == pytest.approx(losses, rel=1e-4)
    # A point on the edge of a cell may fall on either side, with another slope; test_triton.py keeps away from edges.
    assert other_norm == pytest.approx(norm, rel=1e-2)
