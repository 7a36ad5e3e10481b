"""Tasks solved from examples in the prompt, without a gradient."""
