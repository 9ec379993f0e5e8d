"""The Python client and pluginctl."""
