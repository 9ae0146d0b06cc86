"""Timings, memory and precision of the losses, for anybody to repeat on their own machine."""
