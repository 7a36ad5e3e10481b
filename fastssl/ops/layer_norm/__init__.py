"""Layer normalisation fused with dropout and the residual sum: definition, backends, choice."""
