"""Where registry meets content: pull, push and their progress."""
