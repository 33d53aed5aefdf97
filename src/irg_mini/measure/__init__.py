"""How well a model draws and reads the mini world."""
