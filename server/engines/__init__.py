"""Engine processes as the web process sees them: started, supervised, sent requests, read."""
