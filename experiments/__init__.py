"""The experiment on liver CT: what runs, and how its results are judged."""
