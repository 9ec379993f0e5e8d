"""Nouns: frozen values, parsers and pure rules; no I/O."""
