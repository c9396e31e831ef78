"""Looking into a model while it runs, without a word of it in the model."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import nn

Module = TypeVar("Module", bound=nn.Module)
Seen = TypeVar("Seen")


@contextmanager
def record(
    model: nn.Module, kind: type[Module], arguments: tuple[str, ...], look: Callable[[Module, dict[str, Any]], Seen]
) -> Iterator[dict[str, Seen]]:
    """Within this context, `look(module, its arguments by name)` is called after each module of `kind` has run.

    arguments: the names of `forward`'s arguments in order. Results are left, without gradient, in the dict that is
    returned, under the modules' names; a module that runs twice keeps its last one.
    """
    found: dict[str, Seen] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(module: Module, given: tuple[Any, ...], named: dict[str, Any], _output: Any) -> None:
            with torch.no_grad():
                found[name] = look(module, dict(zip(arguments, given, strict=False)) | named)

        return hook

    handles = [
        module.register_forward_hook(keep(name), with_kwargs=True)
        for name, module in model.named_modules()
        if isinstance(module, kind)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
