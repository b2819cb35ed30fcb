"""Audio and transcripts: from files to padded global batches."""
