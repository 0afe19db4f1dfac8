"""The matrix: what becomes of children in every state when a person or fate does something to their task."""
