"""Optimizers, learning-rate schedulers, EMA and the non-finite guard."""
