"""The keymap: the hot maps derived from the journal, in one SQLite file.

schema.py opens and describes the file, rows.py turns rows into the store's nouns,
apply.py (with apply_tree.py and apply_uploads.py) decides changes, reader.py answers.
"""
