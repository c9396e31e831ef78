"""Backbones, DETR, Deformable DETR and Faster R-CNN, and the rows of the paper's table by name."""
