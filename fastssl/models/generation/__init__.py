"""Writing on with a causal model: `generate.py` is the loop, over what reads (`reader.py`) and what chooses."""
