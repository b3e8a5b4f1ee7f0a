"""Helpers that several test files share. There is no test here."""
