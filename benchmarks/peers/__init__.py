"""What fastssl is compared with, each as its own users would call it."""
