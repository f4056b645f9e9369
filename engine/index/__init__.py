"""The commit order: local, its socket, change feed and shared page."""
