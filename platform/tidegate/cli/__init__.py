"""The `tidegate` command: one file a noun. Heavy imports stay inside the commands, so that --help is quick."""
