"""Muon: momentum whose update is made orthogonal, matrix by matrix (Jordan et al. 2024).

A gradient of a weight matrix usually points in few directions, and so does its momentum. Muon replaces its singular values
by ones, so that every direction is learned at the same speed: a detector that starts from nothing then needs several times
fewer steps than with AdamW. For matrices and convolutions; biases, norms and tables of vectors stay with AdamW.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

# A polynomial that pulls singular values from 0..1 towards 1: each application multiplies small ones by 3.4, and four of them
# leave the others between 0.68 and 1.2 (Jordan et al. 2024).
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
STEPS = 4


def orthogonalize(matrices: Tensor) -> Tensor:
    """The same singular vectors with singular values of about 1: (B, m, n) → (B, m, n), by Newton–Schulz iteration.

    Each step is X ← aX + b(XXᵀ)X + c(XXᵀ)²X. It differs from `torch.optim.Muon` in two ways. All its factors are polynomials
    of the first XXᵀ, so they are multiplied with one another, in the smaller of the two dimensions, and with X once, at the
    end: a third of the arithmetic for the long rows of a convolution. And X is first divided by ‖XXᵀ‖^½ instead of ‖X‖, a
    closer bound of its largest singular value, which saves one step of five.
    """
    if matrices.shape[-2] > matrices.shape[-1]:
        return orthogonalize(matrices.mT).mT
    a, b, c = COEFFICIENTS
    gram = matrices @ matrices.mT
    scale = gram.norm(dim=(-2, -1), keepdim=True).sqrt().clamp(min=1e-7)
    gram = gram / scale.square()
    product: Tensor | None = None
    for step in range(STEPS):
        factor = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        factor.diagonal(dim1=-2, dim2=-1).add_(a)
        product = factor if product is None else factor @ product
        if step < STEPS - 1:
            gram = factor @ gram @ factor
    return (product / scale) @ matrices


class Muon(torch.optim.Optimizer):
    """For matrices, and for convolutions as matrices (outputs, inputs · height · width), which torch's does not take.

    Parameters of one shape are made orthogonal together. A step has the length lr · max(1, m/n)^½ in every direction of an
    m×n matrix. Raises ValueError for a parameter with fewer than two dimensions.
    """

    found_inf: Tensor | None = None

    def __init__(
        self, params: Iterable[Any], lr: float = 0.01, momentum: float = 0.95, weight_decay: float = 0.1
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.dim() < 2:
                    raise ValueError(
                        f"Muon is for matrices, not for a parameter of shape {tuple(parameter.shape)}: leave it to AdamW"
                    )

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update of all parameters that have a gradient; none where `found_inf` is 1, as in torch's fused optimizers.

        A GPU is not asked what it holds, which would be a wait for it: there all is computed, and comes to nothing.
        """
        loss, good = None, None
        if self.found_inf is not None:
            if self.found_inf.device.type != "cpu":
                good = 1 - self.found_inf
            elif bool(self.found_inf):
                return loss
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            lr: float = group["lr"]
            momentum: float | Tensor = group["momentum"]
            decay: float | Tensor = 1 - lr * group["weight_decay"]
            parameters = [p for p in group["params"] if p.grad is not None]
            if not parameters:
                continue
            gradients: list[Tensor] = [p.grad for p in parameters]
            if good is not None:
                momentum, decay = torch.where(good > 0, momentum, 1.0), torch.where(good > 0, decay, 1.0)
                gradients = [gradient.nan_to_num(0.0, 0.0, 0.0) for gradient in gradients]  # since NaN · 0 is NaN
                torch._foreach_mul_(gradients, good)
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            running = [self.state[p]["momentum_buffer"] for p in parameters]
            torch._foreach_mul_(running, momentum)
            torch._foreach_add_(running, gradients)
            # Nesterov's momentum: the running sum, looked at one step ahead. Its length does not matter.
            ahead = torch._foreach_add(gradients, running, alpha=group["momentum"])
            torch._foreach_mul_(parameters, decay)
            by_shape: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
            for i, parameter in enumerate(parameters):
                by_shape[len(parameter), parameter[0].numel()].append(i)
            for (rows, columns), places in by_shape.items():
                updates = orthogonalize(torch.stack([ahead[i].flatten(1) for i in places]))
                updates *= -lr * max(1.0, rows / columns) ** 0.5
                if good is not None:
                    updates *= good
                alike = [parameters[i] for i in places]
                torch._foreach_add_(alike, [u.view(p.shape) for u, p in zip(updates, alike, strict=True)])
        return loss
