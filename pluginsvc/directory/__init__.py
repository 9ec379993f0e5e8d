"""Who provides what: calls to plugins, and whether they answer."""
