"""Problems: data sets (`sources`), a procedural task (`arithmetic`), and their tokens (`prompts`)."""
