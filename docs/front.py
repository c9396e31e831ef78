"""Draws docs/front.png, the picture in the README: `python docs/front.py`, from the repository's root."""

from pathlib import Path

import torch

from ddetr_lite.datasets.shapes import ShapesConfig, render_picture
from ddetr_lite.engine.checkpoint import load_model
from ddetr_lite.engine.predict import predict
from ddetr_lite.layers.deformable_attention import record_samples
from ddetr_lite.plots import detection
from ddetr_lite.plots.style import panels, png

SCENES = (40, 38)  # of the validation split: the shipped model has not seen them


def main() -> None:
    """Two scenes with detections, and one with the sampling points of the surest query."""
    loaded = load_model("data/checkpoints/shapes.pt")
    drawn, axes = panels(3, height=2.9)
    pictures = []
    for index, ax in zip(SCENES, axes, strict=False):
        pixels = torch.from_numpy(render_picture(ShapesConfig(), "val", index)[0].copy()).permute(2, 0, 1)
        found = predict(loaded, pixels)
        detection.boxes(pixels, [f.box for f in found], [f.label for f in found], [f.score for f in found], ax=ax)
        pictures.append(pixels)

    with record_samples(loaded.model) as samples, torch.no_grad():
        outputs = loaded.model.outputs(loaded.model.batch(pictures[:1]))
    last = f"transformer.decoder.layers.{len(outputs.logits) - 1}.cross_attn"
    locations, weights = samples[last]
    surest = int(outputs.logits[-1, 0].amax(-1).argmax())
    detection.sampling_points(
        pictures[0], locations[0, surest], weights[0, surest], outputs.boxes[-2, 0, surest], ax=axes[2]
    )
    Path("docs/front.png").write_bytes(png(drawn))


if __name__ == "__main__":
    main()
