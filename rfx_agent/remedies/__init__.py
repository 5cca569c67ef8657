"""What may turn a failure into a verified success: one remedy a file."""
