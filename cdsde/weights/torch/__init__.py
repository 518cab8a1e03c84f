"""Weights of PyTorch code bases: file formats, parameter names, architectures."""
