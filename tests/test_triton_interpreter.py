"""The Triton kernels without a GPU: their tests in Triton's interpreter, and whether they can be translated for a chip.

The interpreter is a process of its own, because Triton looks at the variable once, when it is imported.
"""

import os
import re
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
    assert re.search(r"\b[1-9]\d* passed", done.stdout), done.stdout[-4000:]


@pytest.mark.skipif(find_spec("triton") is None, reason="there is no Triton for this system")
@pytest.mark.parametrize(
    ("name", "kind", "channels", "halves"),
    [
        *(("forward_kernel", kind, channels, False) for kind, channels in ((0, 32), (2, 32), (4, 32), (2, 24), (2, 8))),
        *(
            ("backward_kernel", kind, channels, False)
            for kind, channels in ((0, 32), (2, 32), (4, 32), (2, 24), (2, 8))
        ),
        ("forward_kernel", 2, 32, True),
        ("backward_kernel", 2, 32, True),
    ],
)
def test_kernels_translate_for_an_h100(name: str, kind: int, channels: int, halves: bool) -> None:
    """The interpreter forgives what the compiler does not. Rows are loaded, and gradients added, 16 bytes at a time, also
    where a head's channels are no power of two: both pieces of a thread's query, for each corner. (Halves with gradients,
    which are float32, 8 bytes at a time.)
    """
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from ddetr_lite.kernels import triton_kernels

    kernel = getattr(triton_kernels, name)
    whole = 8 if halves and name == "forward_kernel" else 4
    blocks = triton_kernels.tile(channels, each=whole)
    options = {name: blocks.pop(name) for name in ("num_warps", "enable_fp_fusion")}
    constants = {
        "M": 8,
        "D": channels,
        "L": 4,
        "P": 4,
        "KIND": kind,
        "SCALED": True,
        "VALUE": True,
        "PADDED": 16,
        **blocks,
    }
    given = {k: v for k, v in constants.items() if k in kernel.arg_names}
    numbers = {"queries", "tokens"}
    signature = {n: "constexpr" if n in given else "i32" if n in numbers else "*fp32" for n in kernel.arg_names}
    if halves:
        signature |= dict.fromkeys({"value", "output", "grad_output"} & signature.keys(), "*bf16")
    signature["sizes"] = ("fp32",) * 8  # type: ignore[assignment]
    aligned = [i for i, n in enumerate(kernel.arg_names) if n not in {*given, "sizes", *numbers}]  # where tensors begin
    source = ASTSource(kernel, signature, given, {(i,): [["tt.divisibility", 16]] for i in aligned})
    code = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    loads = 2 * 4 * constants["L"]  # of two pieces, for the four corners of a level's sample
    assert len(re.findall(rf"ld\.global\.v{2 if halves and whole == 4 else 4}\.b32", code)) >= loads
    if name == "backward_kernel":
        added = re.findall(r"(?:red|atom)\.global\.\S*add\.\S*", code)
        assert added
        assert all(".v4.f32" in one for one in added)


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a machine without a GPU is told")
def test_without_a_gpu_the_error_says_what_to_do() -> None:
    value, at = torch.zeros(1, 4, 1, 16), torch.zeros(1, 1, 1, 1, 1, 2)
    with pytest.raises(ValueError, match=r"backend='triton' needs .*use backend='auto'"):
        multi_scale_deformable_attention(value, [(2, 2)], at, torch.ones(1, 1, 1, 1, 1), "triton")


def test_where_triton_is_missing_the_error_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ddetr_lite.kernels.triton", None)
    monkeypatch.setattr("ddetr_lite.kernels.find_spec", lambda name: None)
    assert "package triton, which is not installed" in (why_not("triton", torch.zeros(1, 4, 1, 16)) or "")
