"""Several replicas of the server on one machine or many, by Ray Serve (``irg serve --ray``)."""
