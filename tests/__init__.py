"""The tests are a package, so each import names the file that it imports from."""
