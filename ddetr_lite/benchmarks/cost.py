"""What a model costs: parameters, multiply-adds, memory and speed, each of all rows of a study under the same conditions.

Parameters, multiply-adds and activations are counted, with no clock. Speed is measured in turns, model by model.
"""

import copy
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ddetr_lite.batching import RawBatch
from ddetr_lite.benchmarks.machine import peak_bytes, seconds
from ddetr_lite.datasets.coco import CocoDetection
from ddetr_lite.datasets.loading import Batch
from ddetr_lite.engine.data import datasets, order_of
from ddetr_lite.engine.distributed import World
from ddetr_lite.engine.optimization import make_optimizers
from ddetr_lite.engine.recipes import Recipe
from ddetr_lite.engine.run import State
from ddetr_lite.engine.step import Step
from ddetr_lite.models.presets import Model, build

REPEATS = 9


def costs(recipes: Mapping[str, Recipe], device: torch.device) -> dict[str, dict[str, float]]:
    """For every recipe by its name:

    "parameters"; "multiply_adds" of one validation picture; "activation_bytes" that a training step keeps for its backward
    pass; "peak_bytes" of GPU memory of a training step (CUDA alone); "step_seconds" of training, the median; and
    "picture_seconds" of finding the objects of one picture, the median.
    """
    models, found = {}, {}
    for name, recipe in recipes.items():
        model = _Model(recipe, device)
        models[name] = model
        found[name] = {
            "parameters": float(sum(p.numel() for p in model.model.parameters())),
            "multiply_adds": model.multiply_adds,
            "activation_bytes": float(model.activation_bytes()),
            "batch": float(recipe.train.batch),
        }
        if device.type == "cuda":
            model.train_step()  # the first makes the optimizers' averages
            found[name]["peak_bytes"] = float(peak_bytes(model.train_step))
    steps: dict[str, list[float]] = {name: [] for name in models}
    pictures: dict[str, list[float]] = {name: [] for name in models}
    for repeat in range(REPEATS + 2):
        for name, model in models.items():
            step, picture = seconds(model.train_step, device), seconds(model.find, device)
            if repeat >= 2:  # the first ones allocate
                steps[name].append(step)
                pictures[name].append(picture)
    for name in models:
        found[name]["step_seconds"] = statistics.median(steps[name])
        found[name]["picture_seconds"] = statistics.median(pictures[name])
    return found


class _Model:
    """A model with a training batch and a picture of its recipe's data on the device."""

    def __init__(self, recipe: Recipe, device: torch.device):
        place = World(device)
        training, validation = datasets(replace(recipe, data=replace(recipe.data, cache="none")), place)
        torch.manual_seed(0)
        self.model: Model = build(recipe.model, len(training.classes), load_backbone=False)
        # Counted on the CPU, where every product is an operation of torch's that can be seen.
        self.multiply_adds = multiply_adds(self.model, _first_picture(validation, torch.device("cpu")))
        self.model.to(device)
        self.step = Step(State(self.model, make_optimizers(self.model, recipe.train), None), recipe.train, place)
        keys = order_of(recipe.train, training).epoch(0).batches[0]
        self.batch = Batch.of([training[key] for key in keys]).to(device)
        self.picture = _first_picture(validation, device)

    def train_step(self) -> None:
        """Pictures to changed weights. The rate is so small that every step is like the first."""
        self.model.train()
        self.step([self.batch], rate=1e-9)

    def activation_bytes(self) -> int:
        """What a training step keeps for its backward pass."""
        self.model.train()
        kept = kept_bytes(lambda: self.step.gradient([self.batch]), self.model)
        self.model.zero_grad(set_to_none=True)
        return kept

    @torch.no_grad()
    def find(self) -> None:
        """One picture to its objects."""
        self.model.eval()
        self.model(self.picture)


def kept_bytes(work: Callable[[], object], model: nn.Module) -> int:
    """Bytes of the tensors that autograd keeps in `work` for a backward pass: each storage once, without the model's own."""
    kept: dict[int, tuple[Tensor, int]] = {}
    own = {p.untyped_storage().data_ptr() for p in [*model.parameters(), *model.buffers()]}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            # The tensor is held, so that no later one gets its place and is taken for it.
            kept[storage.data_ptr()] = (tensor.detach(), storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        work()
    return sum(size for _, size in kept.values())


def _first_picture(dataset: CocoDetection, device: torch.device) -> RawBatch:
    return Batch.of([dataset[0]]).to(device).images


def seconds_per_picture(cost: Mapping[str, float]) -> float:
    """Of training, from what `costs` found for a model."""
    return cost["step_seconds"] / cost["batch"]


@torch.no_grad()
def multiply_adds(model: Model, picture: Any) -> float:
    """Of finding the objects of `picture`, as papers count them: products of matrices, convolutions, and sampling."""
    # The counter asks what has a gradient for its place in the graph, where a parameter's view has none.
    counted = copy.deepcopy(model).eval().requires_grad_(False)
    with FlopCounterMode(display=False, custom_mapping=_UNCOUNTED) as counter:
        counted(picture)
    return counter.get_total_flops() / 2


def _bag_flops(table: Any, indices: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    """Shapes (rows, channels) and (indices,): each row that is read is multiplied and added once."""
    return 2 * int(torch.Size(indices).numel()) * int(table[1])


def _attention_flops(query: Any, key: Any, *_: Any, out_val: Any = None, **__: Any) -> int:
    """Shapes (B, M, N_q, D) and (B, M, N, D): scores, and the weighted sum of values."""
    batch, heads, queries, channels = query
    return 2 * 2 * int(batch * heads * queries * key[2] * channels)


# Operations that the counter of some version of torch does not know.
_UNCOUNTED: dict[Any, Any] = {
    torch.ops.aten._embedding_bag: _bag_flops,
    torch.ops.aten._embedding_bag_forward_only: _bag_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
}
