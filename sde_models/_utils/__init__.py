"""What every package stands on: shapes, random numbers, counting, errors, files."""
