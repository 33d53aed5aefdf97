"""Building trajectory data."""
