"""Studies: grids of runs, their report and their figures, from what runs leave on disk; no model is needed."""
