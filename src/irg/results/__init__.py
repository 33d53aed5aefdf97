"""What comes out of a request: trajectories, image metadata, HTML reports."""
