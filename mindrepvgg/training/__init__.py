"""Training: one compiled step, the loop around it, and what a person and a program see of it."""
