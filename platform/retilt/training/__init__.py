"""HOW a step is taken: parallel wrapping, the loop, checkpoints."""
