"""The lab: train models on a question whose answer is known, and measure where they look."""
