"""The tables: DuckDB relations derived from the journal, and the SQL over them."""
