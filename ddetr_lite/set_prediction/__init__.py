"""Detection as the prediction of a set: boxes, the matching with the truth, the losses, and back to pixels."""
