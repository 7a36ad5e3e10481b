"""What people do with a model: pretrain it, fill masks with it."""
