"""Functional Task Networks in JAX: continual learning in sparse, recoverable parts of one model."""
