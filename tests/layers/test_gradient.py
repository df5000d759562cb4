"""The squared error: what is special to the topic."""
