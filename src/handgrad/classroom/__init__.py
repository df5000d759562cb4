"""What a classroom needs, made from the executed notebooks: handouts, a cheat sheet, a site."""
