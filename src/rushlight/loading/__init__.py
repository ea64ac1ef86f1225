"""Loading: where a source, an architecture, a backend and a tokenizer meet."""
