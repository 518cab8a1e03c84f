"""`--mode=eval`: measure translations and edits."""
