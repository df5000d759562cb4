"""Softmax and cross-entropy: what is special to the topic."""
