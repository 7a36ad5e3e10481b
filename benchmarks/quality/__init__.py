"""How good a fine-tuned model is: fastssl beside Hugging Face's Trainer, on real data, over several seeds."""
