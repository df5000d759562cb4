"""The linear layer: what is special to the topic."""
