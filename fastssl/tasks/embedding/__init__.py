"""A vector for a text: serving, training, search."""
