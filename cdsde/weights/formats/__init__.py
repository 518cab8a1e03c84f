"""Networks that others published, each opened by a reader of its file format."""
