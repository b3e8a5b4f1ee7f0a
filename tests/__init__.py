"""The tests, as a package: every import says which file has the name."""
