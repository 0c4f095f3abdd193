"""The doctor's rules, one subject a file."""
