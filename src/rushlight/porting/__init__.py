"""Port: does a checkpoint fit a model, and a port to begin with."""
