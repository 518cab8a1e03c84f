"""The benchmark: `python -m cdsde.benchmark`, or `bash launch/benchmark.sh`.

plan: the runs. run: computes and stores them. floors: baselines without a network. published: the
papers' numbers. edits: every editor by words. summary, plots, page: tables, figures and the report.
"""
