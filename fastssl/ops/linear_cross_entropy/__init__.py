"""Softmax cross-entropy fused with the linear map to the vocabulary: definition, backends, choice."""
