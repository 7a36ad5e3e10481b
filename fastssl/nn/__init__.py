"""Building blocks over the operators: one idea a file, plain numbers as arguments, packed tokens as input."""
