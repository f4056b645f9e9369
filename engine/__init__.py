"""The store: chunks, frames, stripes, segments, nodes, journal, keymap, tables."""
