"""Ours inside training frameworks: by name, by config, and as docs/frameworks.md says."""
