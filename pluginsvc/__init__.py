"""Manage Docker Engine plugins on a host, with no dockerd behind it."""
