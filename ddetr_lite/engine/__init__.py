"""Training, evaluation, checkpoints and logs: the loop around a model and its data."""
