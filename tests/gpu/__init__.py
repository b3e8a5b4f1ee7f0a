"""Tests of what both GPU backends share: how work is cut and ordered; and tests that need a GPU."""
