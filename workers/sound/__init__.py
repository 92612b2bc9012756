"""Audio files in and out, by PyAV (which carries ffmpeg); for workers whose environment has it."""
