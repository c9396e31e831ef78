"""Files of tensors: `.safetensors`, and PyTorch's `.pth` without running the code that a pickle can hold."""

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from ddetr_lite.writing import replacing


def read_tensors(path: str | Path) -> dict[str, Any]:
    """What a file holds: a dict of tensors, or a whole training checkpoint, on the CPU.

    The authors' checkpoints hold their command line as an `argparse.Namespace`; that class, which runs no
    code, is let through, and no other. Raises ValueError with the remedy for a path that is no file, or no
    file of tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path} is no file: give the path of a .pth or .safetensors file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, MemoryError) as error:
        raise ValueError(f"{path} cannot be read ({type(error).__name__}: {error})") from error
    # A file that is something else fails in torch in a dozen ways, down to KeyError and EOFError.
    except Exception as error:
        raise ValueError(f"{path} cannot be read as tensors: {_reason_and_remedy(error)}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__}, expected a dict of tensors, or one with 'model'")
    return content


def _reason_and_remedy(error: Exception) -> str:
    """What is wrong with a file in the user's terms: torch's texts advise to run what the file holds."""
    forbidden = re.search(r"GLOBAL (\S+)", str(error))
    if forbidden:
        return (
            f"more than tensors is in it: to read it, code of {forbidden[1]} would have to run. Expected are tensors, numbers "
            "and an argparse.Namespace: save the model's state_dict() alone"
        )
    if isinstance(error, UnpicklingError) and "Unsupported operand" in str(error):
        return "torch.save has not written it, or with a pickle_protocol of its own. Save it again with torch.save, without one"
    first = re.split(r"\. |\n", str(error).rpartition("WeightsUnpickler error:")[2].strip())[0] or "no reason given"
    return f"it is cut short, or something else ({type(error).__name__}: {first}). Fetch or save it again"


def write_tensors(state: Mapping[str, Tensor], path: str | Path, metadata: Mapping[str, str] | None = None) -> None:
    """Write a dict of tensors to `.safetensors` (with `metadata`), or to `.pth` under the key "model" as the
    authors do.

    The file appears only when it is whole. Raises ValueError for another ending.
    """
    path = Path(path)
    if path.suffix not in (".safetensors", ".pth"):
        raise ValueError(f"{path} must end in .safetensors or .pth")
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {k: v.detach().cpu().contiguous() for k, v in state.items()}
    with replacing(path) as file:
        if path.suffix == ".safetensors":
            file.write(save(tensors, metadata=dict(metadata or {})))
        else:
            torch.save({"model": tensors}, file)
