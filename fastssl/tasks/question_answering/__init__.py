"""The span of a document that answers a question."""
