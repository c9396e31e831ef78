"""Picture files of every mode become RGB of 8 bits, or an error that names the file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ddetr_lite.datasets.pictures import read_picture


@pytest.mark.parametrize("upright", [False, True])
@pytest.mark.parametrize("ending", ["png", "tif"])
def test_greyscale_of_16_bits_keeps_its_range(tmp_path: Path, ending: str, upright: bool) -> None:
    grey = np.random.default_rng(5).integers(0, 2**16, (7, 11), dtype=np.uint16)
    grey[0, :2] = 0, 2**16 - 1
    Image.fromarray(grey).save(tmp_path / f"grey.{ending}")
    read = read_picture(tmp_path / f"grey.{ending}", upright)
    assert read.shape == (3, 7, 11)
    assert read[:, 0, :2].tolist() == [[0, 255]] * 3
    exact = torch.from_numpy(grey.astype(np.float64)) * (255 / (2**16 - 1))
    assert (read - exact).abs().max() <= 1


@pytest.mark.parametrize(("dtype", "kind"), [(np.int32, "32-bit numbers"), (np.float32, "floating-point numbers")])
def test_numbers_without_a_white_are_an_error(tmp_path: Path, dtype: type, kind: str) -> None:
    Image.fromarray(np.ones((4, 6), dtype)).save(tmp_path / "depth.tif")
    with pytest.raises(ValueError, match=rf"depth.tif cannot be read: its pixels are {kind}.*save it with 8 bits"):
        read_picture(tmp_path / "depth.tif")


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_modes_of_8_bits_are_read_as_pillow_converts_them(tmp_path: Path, mode: str) -> None:
    colours = Image.fromarray(np.random.default_rng(6).integers(0, 256, (9, 8, 3), dtype=np.uint8))
    path = tmp_path / f"picture.{'tif' if mode == 'CMYK' else 'png'}"
    colours.convert(mode).save(path)
    expected = np.asarray(colours.convert(mode).convert("RGB"))
    assert torch.equal(read_picture(path), torch.from_numpy(expected.copy()).permute(2, 0, 1))
