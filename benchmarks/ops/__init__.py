"""Each operator beside PyTorch."""
