"""The formats of data sets, one in a file."""
