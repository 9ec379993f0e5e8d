"""Content-addressed blobs: store, ingests, collection."""
