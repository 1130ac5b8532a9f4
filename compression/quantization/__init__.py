"""Quantization: weights and activations on grids of few bits, after training and while training."""
