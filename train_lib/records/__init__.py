"""What a run leaves in its folder besides checkpoints: records, event files, pictures, and the terminal."""
