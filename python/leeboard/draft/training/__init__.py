"""Training drafters: data, target states, the loop and its checkpoints."""
