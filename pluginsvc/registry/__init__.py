"""The distribution client: knows HTTP and no disk."""
