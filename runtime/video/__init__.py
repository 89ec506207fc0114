"""Moving pictures: frames of files, streams and cameras."""
