"""The objfs command and the FUSE door."""

__version__ = "0.1.0"
