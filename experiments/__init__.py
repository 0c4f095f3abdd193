"""Train reference models on injected patches, whose place is known, and measure their maps."""
