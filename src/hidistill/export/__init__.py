"""A finished student in the formats of others."""
