"""Batches and a module in, weights out: one loop, its optimizers, stops, checkpoints and progress."""
