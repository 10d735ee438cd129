"""Studies: the commands behind the tables of the docs, and the small JSON files they wrote."""
