"""fastssl on a CUDA GPU in one command: its tests, the machine's ceilings, and every operator beside its peers."""
