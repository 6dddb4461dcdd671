"""What a run says, for people: a terminal table, one HTML page, and the same numbers as JSON."""
