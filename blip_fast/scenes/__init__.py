"""A small visual world of shapes, its language, and the small model that knows it."""
