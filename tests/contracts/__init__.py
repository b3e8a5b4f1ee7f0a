"""What holds for every optimizer and backend: each contract runs over the whole table of cases."""
