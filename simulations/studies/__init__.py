"""Studies: the commands behind the README's tables, and the small JSON files they wrote."""
