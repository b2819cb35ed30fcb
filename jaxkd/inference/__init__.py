"""What models say of audio: frames, searches, error rates."""
