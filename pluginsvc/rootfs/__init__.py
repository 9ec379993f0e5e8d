"""Tar streams to directories and back; the confined child."""
