"""Steelyard: post-training in which every round is weighed before it is promoted."""

from steelyard.hookspecs import hookimpl

__all__ = ["__version__", "hookimpl"]

__version__ = "0.1.0"
