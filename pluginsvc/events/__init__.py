"""The bus, the journal's publisher, filters and subscribers."""
