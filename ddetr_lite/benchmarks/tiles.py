"""How large should a program of the Triton kernels be? `python -m ddetr_lite.benchmarks.tiles`, for whoever changes them.

Times them at the encoder's shape of the paper, with model-like locations, for several numbers of queries and warps; `tile` in
`kernels/triton_kernels.py` should choose what is fastest.
"""

import itertools
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from ddetr_lite.benchmarks.msda import DTYPES, SETTINGS, Setting, make_input, measure
from ddetr_lite.benchmarks.msda_peers import OURS
from ddetr_lite.kernels import multi_scale_deformable_attention, triton
from ddetr_lite.kernels.triton_kernels import tile


def sweep(
    setting: Setting, inputs: tuple[Tensor, ...], blocks: Sequence[int], warps: Sequence[int], repeats: int = 20
) -> Iterator[tuple[int, int, dict[str, float]]]:
    """For each number of queries and of warps of a program: median milliseconds of "forward", and of "both" ways."""
    ours = partial(multi_scale_deformable_attention, backend="triton")
    for block, warp in itertools.product(blocks, warps):
        chosen = {**tile(inputs[0].shape[-1]), "BLOCK": block, "num_warps": warp}
        triton.tile = lambda channels, each=4, chosen=chosen: dict(chosen)
        try:
            found = measure({OURS: ours}, setting, inputs, repeats)[OURS]
        finally:
            triton.tile = tile
        yield block, warp, found


if __name__ == "__main__":
    for name, dtype in DTYPES.items():
        given = make_input(SETTINGS["encoder"], "model-like", torch.device("cuda"), dtype, seed=0)
        for block, warp, found in sweep(SETTINGS["encoder"], given, (4, 8, 16, 32, 64), (1, 2, 4)):
            times = ", ".join(f"{what} {found[what]:.3f} ms" for what in ("forward", "both"))
            print(f"{name}, {block:2} queries, {warp} warps: {times}", flush=True)
