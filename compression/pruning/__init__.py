"""Techniques that set weights to zero: penalties, magnitude masks, prune-and-splice."""
