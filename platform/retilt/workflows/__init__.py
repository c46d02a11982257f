"""WHOLE procedures: what a user would otherwise do by hand, step after step."""
