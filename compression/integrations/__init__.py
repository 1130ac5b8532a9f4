"""Techniques in a training loop of somebody else's: a plain one, Accelerate, transformers, Lightning.

`Compressor` is all that a loop needs; `transformers_callback` and `lightning_callback` call it where those libraries
say that a step begins, that gradients are there, and that weights have moved.
"""

from .compressor import Compressor, Phase
from .lightning import lightning_callback
from .transformers import transformers_callback

__all__ = ["Compressor", "Phase", "lightning_callback", "transformers_callback"]
