"""What each operator of torch does to weights and gates, one family a file."""
