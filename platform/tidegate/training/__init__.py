"""Training: the worker's loop, the ordered reduction, checkpoints, and the Ray Train run around them."""
