"""What is measured on a video, and how it is decided: plain Python and arrays, without Ray."""
