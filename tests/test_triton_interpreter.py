"""The tests of the Triton kernels without a GPU: in Triton's interpreter, which runs them on the CPU.

A process of its own, because Triton looks at the variable once, when it is imported.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

from ddetr_lite.kernels import multi_scale_deformable_attention, why_not

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.skipif(find_spec("triton") is None, reason="there is no Triton for this system")
def test_kernels_in_the_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu"],
        capture_output=True,
        text=True,
        env=environment,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    assert "0 passed" not in done.stdout
    assert " passed" in done.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU is told")
def test_without_a_gpu_the_error_says_what_to_do() -> None:
    value, at = torch.zeros(1, 4, 1, 16), torch.zeros(1, 1, 1, 1, 1, 2)
    with pytest.raises(ValueError, match=r"backend='triton' needs .*use backend='auto'"):
        multi_scale_deformable_attention(value, [(2, 2)], at, torch.ones(1, 1, 1, 1, 1), "triton")


def test_where_triton_is_missing_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddetr_lite.kernels.triton", None)
    monkeypatch.setattr("ddetr_lite.kernels.find_spec", lambda name: None)
    assert "package triton, which is not installed" in (why_not("triton", torch.zeros(1, 4, 1, 16)) or "")
