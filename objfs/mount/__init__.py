"""The FUSE door: the store's buckets and keys as a tree of files."""
