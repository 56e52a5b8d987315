"""Jobs: the spec, the stage graph on Ray Data, the dataset directory, submission and the command line."""
