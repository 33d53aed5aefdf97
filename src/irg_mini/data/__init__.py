"""Training rows of the mini world."""
