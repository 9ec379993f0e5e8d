"""The one database: records, leases and the event journal (SQLite)."""
