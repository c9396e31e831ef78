"""What every test can rely on: the same random numbers in every run and in any order."""

import random

import numpy as np
import pytest
import torch
from hypothesis import settings

# Generated cases are the same each time, so that a red run can be repeated. No deadline: the first call of a
# torch operation can take longer than hypothesis allows.
settings.register_profile("repeatable", derandomize=True, deadline=None)
settings.load_profile("repeatable")


LONGEST = (
    "06_detr.ipynb",
    "09_deformable_detr.ipynb",
    "11_train_on_coco.ipynb",
    "test_notebooks.py",
    "test_engine.py",
    "test_triton_interpreter.py",
    "test_distributed.py",
    "test_explain.py",
    "04_transformer.ipynb",
    "test_pretend_gpu.py",
)
"""Files that take half a minute to two minutes each, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: where several processes share the work, none waits in the end for another's long file."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (the global generator is what libraries fall back on)
    torch.manual_seed(0)
