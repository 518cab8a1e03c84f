"""The benchmark: `python -m cdsde.benchmark`, or `bash launch/benchmark.sh`.

What is run (plan), how one run is made and kept (run), the floors below every method (floors), the
published numbers (published), and what is written of it all (summary, plots, page).
"""
