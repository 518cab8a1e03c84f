"""`--mode=serve`: a page to try a task on."""
