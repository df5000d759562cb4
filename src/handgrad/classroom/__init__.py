"""What a teacher hands out: editions, paper, single pages, grading, a cheat sheet, a site."""
