"""The formats of data sets, each in its own file."""
