"""Data sets that several milestones share."""
