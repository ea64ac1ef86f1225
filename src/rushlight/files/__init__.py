"""Files: strict JSON, bounded reads and atomic writes."""
