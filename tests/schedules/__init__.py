"""Learning rates: formulas, schedules and their names, alone and among others."""
