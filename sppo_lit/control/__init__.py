"""The paper's control benchmark (section 5.3): five environments with one binary reward at the end."""
