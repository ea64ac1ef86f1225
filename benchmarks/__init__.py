"""rushlight against the runtimes that people use today, in one sitting: see README.md."""
