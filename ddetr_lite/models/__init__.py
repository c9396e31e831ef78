"""Backbones, DETR, Deformable DETR, and the named recipes."""
