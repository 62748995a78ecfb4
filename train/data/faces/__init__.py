"""Pictures of people: sources, landmarks, alignment, formats, and drawn faces."""
