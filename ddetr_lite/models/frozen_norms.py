"""Batch norms that keep the numbers they were loaded with, as in DETR, and cost next to nothing behind a convolution.

With its statistics fixed, a batch norm is y = s·x + t, one s and one t a channel. Behind a convolution it is a part of it:
s·(w∗x) + t = (s·w)∗x + t. Scaling a few weights replaces two passes over a whole feature map in each direction; and in mixed
precision the map stays in bfloat16, where a norm in float32 would turn it into float32. The gradient reaches w as before.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

Pairs = dict[nn.BatchNorm2d, nn.Conv2d]
"""Each batch norm that follows a convolution directly, and that convolution, whose map goes nowhere else."""


class FoldedNorm(FrozenBatchNorm2d):
    """A frozen batch norm whose work the convolution before it does: it holds the numbers, and returns what it is given."""

    _known: tuple[list[tuple[int, int]], tuple[Tensor, Tensor]] | None = None

    def affine(self) -> tuple[Tensor, Tensor]:
        """s and t, (C,) each, of s·x + t (Ioffe and Szegedy 2015, algorithm 2).

        Worked out anew only where one of the four buffers is another tensor, or was written to: six small operations for each
        convolution, which on a GPU take longer to start than to run.
        """
        buffers = (self.weight, self.bias, self.running_mean, self.running_var)
        if torch.compiler.is_compiling() or any(buffer.is_inference() for buffer in buffers):
            return self._affine()  # there nothing tells of a change
        stand = [(id(buffer), buffer._version) for buffer in buffers]
        if self._known is None or self._known[0] != stand:
            with torch.inference_mode(False), torch.no_grad():  # so that they serve in training, too
                self._known = (stand, self._affine())
        return self._known[1]

    def _affine(self) -> tuple[Tensor, Tensor]:
        scale = self.weight * (self.running_var + self.eps).rsqrt()
        return scale, self.bias - self.running_mean * scale

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), unchanged."""
        return x


class FoldedConv2d(nn.Conv2d):
    """A convolution that applies the frozen batch norm behind it too. Its own parameters are those of a plain one."""

    def __init__(self, conv: nn.Conv2d, norm: FoldedNorm):
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            bias=conv.bias is not None,
            padding_mode=conv.padding_mode,
            device="meta",
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.training = conv.training
        self._norm = (norm,)  # in a tuple, so that its buffers are not listed here a second time

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) → (B, C_out, H', W'), the norm applied."""
        scale, shift = self._norm[0].affine()
        if self.bias is not None:
            shift = shift + scale * self.bias
        return self._conv_forward(x, self.weight * scale[:, None, None, None], shift)


@contextmanager
def watch_norms(module: nn.Module) -> Iterator[Pairs]:
    """Run `module` once inside, and the dict given holds its `Pairs`.

    A convolution that runs twice, or whose map two norms take, is in none. That something else takes it, as a sum does,
    cannot be seen here: no network of torchvision's does so.
    """
    pairs: Pairs = {}
    runs: dict[nn.Module, int] = {}
    made: list[tuple[Tensor, int, nn.Conv2d]] = []  # the tensors are kept, so that none takes the place of another

    def after_conv(conv: nn.Module, _: object, y: Tensor) -> None:
        assert isinstance(conv, nn.Conv2d)
        runs[conv] = runs.get(conv, 0) + 1
        made.append((y, y._version, conv))

    def before_norm(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        assert isinstance(norm, nn.BatchNorm2d)
        # A higher version: something changed the map in place meanwhile, as an activation does.
        for y, version, conv in made:
            if y is inputs[0] and y._version == version:
                pairs[norm] = conv

    convs = [m.register_forward_hook(after_conv) for m in module.modules() if type(m) is nn.Conv2d]
    norms = [m.register_forward_pre_hook(before_norm) for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    try:
        yield pairs
    finally:
        for hook in (*convs, *norms):
            hook.remove()
        readers = Counter(pairs.values())
        for norm in [norm for norm, conv in pairs.items() if runs[conv] > 1 or readers[conv] > 1]:
            del pairs[norm]


def freeze_batch_norms(module: nn.Module, pairs: Pairs) -> None:
    """Replace every `BatchNorm2d` below `module` by a frozen one with the same values, folded where it is one of `pairs`."""
    folded: dict[nn.Module, FoldedConv2d] = {}
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                form = FoldedNorm if child in pairs else FrozenBatchNorm2d
                frozen = form(child.num_features, eps=child.eps).to(child.weight)
                frozen.load_state_dict(child.state_dict())
                setattr(parent, name, frozen)
                if isinstance(frozen, FoldedNorm):
                    folded[pairs[child]] = FoldedConv2d(pairs[child], frozen)
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if child in folded:
                setattr(parent, name, folded[child])
