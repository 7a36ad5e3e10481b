"""A class, several of them, or a number for a text or a pair of texts."""
