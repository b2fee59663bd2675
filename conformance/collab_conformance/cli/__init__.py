"""The commands: `verify`, `verify pack` and `verify merge`, one file each."""
