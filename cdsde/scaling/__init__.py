"""The cost of programs: compiled ahead of time for TPUs, or timed on this machine."""
