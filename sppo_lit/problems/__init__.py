"""Problems: data sets (`sources`), generated tasks (`procedural`), and their tokens (`prompts`)."""
