"""From notebooks to what a class is given: editions, handouts."""
