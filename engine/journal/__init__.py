"""The journal: the replicated, ordered log of commits."""
