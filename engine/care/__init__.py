"""Care of what is stored: scrub, repair, collection, compaction, checkpoints, nodes."""
