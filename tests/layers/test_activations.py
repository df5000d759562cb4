"""Activations: what is special to the topic."""
