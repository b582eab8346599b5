"""An index on disk: its files, the versions that they make, and the folder that one writer changes."""
