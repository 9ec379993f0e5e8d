"""The OCI runtime: spec, bundle, monitor, logs."""
