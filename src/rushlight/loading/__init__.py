"""Loading, where a checkpoint, an architecture, a backend and a tokenizer meet."""
