"""Networks of other libraries as teachers and students: what every family needs, once."""
