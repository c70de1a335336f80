"""Model + rows -> answer, one verb a file."""
