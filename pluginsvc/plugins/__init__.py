"""The domain: what a plugin is and all that can be done to it."""
