"""Work on one machine: the ``csg`` command, central training, benchmarks and studies."""
