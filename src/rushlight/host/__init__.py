"""The host machine: its cores, memory, limits and GPUs."""
