"""Quantized layers as integers: what runs in onnxruntime, and what runs in torch's integer kernels.

Training keeps float32 values that lie on grids (`compression.quantization`). Here each such layer is read as integers
(`forms`), and the model is written for one of the two engines.
"""
