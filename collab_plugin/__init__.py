"""Compress Mixture-of-Experts models under a byte budget: prune, adjust top-k, quantize, place."""

from collab_plugin.plugins.hookspecs import hookimpl

__all__ = ["__version__", "hookimpl"]

__version__ = "0.1.0"
