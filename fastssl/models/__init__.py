"""Whole models: packed tokens in, losses out; their sizes, their cost, and their files."""
