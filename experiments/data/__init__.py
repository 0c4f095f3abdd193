"""Where images come from: a data set a file, each with three splits that share nothing."""
