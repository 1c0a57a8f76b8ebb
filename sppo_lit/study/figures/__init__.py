"""Figures from what runs leave on disk: they read files and need neither models nor a run."""
