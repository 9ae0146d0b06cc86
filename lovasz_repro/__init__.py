"""Reproduction of "The Lovász-Softmax loss" (Berman, Rannen Triki, Blaschko, CVPR 2018).

The losses are importable on their own: ``from lovasz_repro.losses import lovasz_softmax``.
The experiments run from the command line: ``lovasz-repro --help``.
"""

__version__ = "0.1.0"
