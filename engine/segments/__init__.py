"""Segments: append-only logs of erasure-coded stripes, one fragment file per node."""
