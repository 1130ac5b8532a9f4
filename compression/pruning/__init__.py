"""Techniques that set weights to zero or remove them."""
