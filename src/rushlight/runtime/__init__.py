"""What a user holds: a loaded model, its requests, results and streams."""
