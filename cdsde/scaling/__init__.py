"""What programs cost: compiled ahead of time for TPUs that are not there, and timed where they run."""
