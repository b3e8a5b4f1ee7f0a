"""Contracts that hold for every optimizer and backend. Each runs over the whole table of cases."""
