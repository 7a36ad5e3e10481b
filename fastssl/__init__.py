"""fastssl: pretrain, adapt, serve and explain BERT-style language models, fast, on the machine you have."""

__version__ = "0.1.0"
