"""Writing on from prompts: texts in, texts out, as they are written or all at once."""
