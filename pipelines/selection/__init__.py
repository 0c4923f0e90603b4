"""What a clip is judged by, and the verdict."""
