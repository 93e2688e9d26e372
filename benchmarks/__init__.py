"""Side by side with peers: the same arrays, the same answer, the time that each takes."""
