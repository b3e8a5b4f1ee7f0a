"""Tests of learning rates: formulas, schedules and their names, alone and with other schedules."""
