"""What pretraining was worth: a task from two starts, and from few labels."""
