"""What both GPU backends share: how work is cut and ordered, and the tests that need a GPU."""
