"""Weights of PyTorch code bases: files, names of parameters, architectures."""
