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


@pytest.fixture(autouse=True)
def _seed() -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 (the global generator is what libraries fall back on)
    torch.manual_seed(0)
