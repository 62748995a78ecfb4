"""The classification networks, one file a family."""
