"""A built model on its devices: memory plan, layers that wait in host memory, several devices."""
