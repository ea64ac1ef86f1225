"""The commands, one file each: flags, printing and exit codes."""
