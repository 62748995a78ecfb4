"""Classification networks, one file per family."""
