"""Training steps and runs beside Hugging Face."""
