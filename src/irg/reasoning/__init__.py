"""Ways of reasoning as programs over the engine, the pipeline that runs them, and what comes out: trajectories."""
