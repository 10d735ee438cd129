"""Speed and memory, measured in parts, each comparing its arms in one run."""
